"""Run the tuner's tests with the oldest supported PEFT, then with the pinned one: ``make versions``.

The oldest is the lower bound in pyproject.toml. It goes into a folder of its own, without what it depends on, and is
put in front of the installed one; everything else stays as constraints.txt has it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
CACHE = REPOSITORY / ".cache" / "versions"


def found(file: str, pattern: str) -> str:
    """The version that a file of the repository names."""
    match = re.search(pattern, (REPOSITORY / file).read_text(encoding="utf-8"), re.MULTILINE)
    assert match, f"{file} names no version of peft"
    return match[1]


def overlay(version: str) -> Path:
    """A folder with one release of PEFT and nothing else, downloaded once."""
    folder = CACHE / f"peft-{version}"
    if not (folder / "peft").exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
        subprocess.run([*command, f"peft=={version}"], check=True)
    return folder


def passes(version: str, arguments: list[str]) -> bool:
    """Run the tests with one release; the process first says which one it really imports."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(overlay(version))}
    check = f"import peft; assert peft.__version__ == {version!r}, peft.__version__; print('== PEFT', peft.__version__)"
    subprocess.run([sys.executable, "-c", check], check=True, env=environment)
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *arguments, "tests/tuner"]
    return subprocess.run(command, check=False, env=environment, cwd=REPOSITORY).returncode == 0


def main(arguments: list[str]) -> int:
    """Both ends of the supported range; versions to run instead may be given first, then arguments of pytest."""
    given = [argument for argument in arguments if re.fullmatch(r"[\d.]+", argument)]
    both = [found("pyproject.toml", r'^ *"peft>=([\d.]+)'), found("constraints.txt", r"^peft==(\S+)$")]
    rest = [argument for argument in arguments if argument not in given]
    failed = [version for version in given or both if not passes(version, rest)]
    print(f"Failed with PEFT {', '.join(failed)}." if failed else f"Passed with PEFT {', '.join(given or both)}.")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
