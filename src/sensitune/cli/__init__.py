"""The command line: ``sensitune run | sensitivity | allocate | train | evaluate | predict | merge | sites | demo``.

One file per subcommand, on the same dataclasses as the Python API: `sensitune run --recipe.epochs 20` sets what
``RunConfig(recipe=Recipe(epochs=20))`` sets, and ``recipe: {epochs: 20}`` in a YAML file. A mistake of the user's is
one sentence on standard error and exit code 2; ``SENSITUNE_DEBUG=1`` shows the traceback.

Example:
    >>> main(["--version"])
    sensitune 0.1.0
    0
"""

from sensitune.cli._main import main

__all__ = ["main"]
