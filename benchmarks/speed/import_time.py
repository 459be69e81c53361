"""What `import sensitune` takes above `import peft`, each in fresh processes that take turns.

python benchmarks/speed/import_time.py --repeats 7 --output benchmarks/results/import_time.json
"""

from __future__ import annotations

import subprocess
import sys

from measuring import parser, publish, spread

PROGRAM = """
import time
start = time.{clock}()
import peft
middle = time.{clock}()
import sensitune
print(middle - start, time.{clock}() - middle)
"""


def main() -> None:
    """Measure and report."""
    arguments = parser(__doc__, repeats=7).parse_args()
    clock = {"wall": "perf_counter", "cpu": "process_time"}[arguments.clock]
    command = [sys.executable, "-c", PROGRAM.format(clock=clock)]
    runs = []
    for _ in range(arguments.repeats + 1):  # the first fills the file cache
        words = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        runs.append(tuple(map(float, words)))
    publish(
        arguments,
        seconds={
            "import peft": spread([peft for peft, _ in runs[1:]]),
            "import sensitune, above that": spread([ours for _, ours in runs[1:]]),
        },
    )


if __name__ == "__main__":
    main()
