"""The subcommands of ``sensitune``: run, sensitivity, allocate, train, evaluate, predict, merge, sites, demo, ...

One file per subcommand with a function ``main(arguments)``, found by its name by `sensitune_command`, the module beside
this package that the command starts in. They read the same dataclasses as the Python API: `sensitune run --epochs 20
--recipe.mixup 0.2` sets what ``Recipe(epochs=20, mixup=0.2)`` sets, and ``recipe: {epochs: 20, mixup: 0.2}`` in a file.

Example:
    >>> import sensitune_command
    >>> sensitune_command.main(["--version"])
    sensitune 0.1.0
    0
"""

from sensitune._installed import need

need("cli", what="The command line")

__all__: list[str] = []
