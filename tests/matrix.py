"""Run the tests of the core in environments from the lowest to the newest: ``make matrix``.

    python tests/matrix.py                       # all of ENVIRONMENTS
    python tests/matrix.py lowest-3.11 newest-3.13

An environment is a set and a Python: ``lowest`` takes every lower bound of ``pyproject.toml``, ``newest`` what pip
finds today. It is made in ``.cache/matrix`` and kept (5 to 7 GB each), and the package is installed into it as a wheel,
so that the sources are not used. In the lowest one a small run on the demo's data follows, trained and evaluated. What
came out becomes a line of the table in ``docs/peft.md``.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tomllib
from datetime import UTC, datetime
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
CACHE = REPOSITORY / ".cache" / "matrix"
TABLE = REPOSITORY / "docs" / "peft.md"
ENVIRONMENTS = ("lowest-3.11", "newest-3.11", "newest-3.12", "newest-3.13")
TESTED = ("tests/sites", "tests/sensitivity", "tests/allocation", "tests/tuner")
SHOWN = ("torch", "transformers", "timm", "peft", "numpy")
# What the tests themselves need. Their bounds are no promise to users.
TOOLS = ("hypothesis", "pytest>=9", "pytest-timeout", "pytest-xdist")
HEAD = f"| environment | Python | {' | '.join(SHOWN)} | passed | failed | skipped | small run | date |"


def requirements(kind: str) -> list[str]:
    """What is installed beside the package: its own requirements, at their lower bounds or as they stand."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *extras["vision"], *extras["cli"]]
    if kind == "newest":
        return lines
    # The small run's packages come in the same breath: installed later, they would raise what is to stay low.
    small_run = [line for line in extras["demo"] if not line.startswith("sensitune")]
    return [*(re.sub(r">=\s*", "==", line) for line in lines), *small_run]


def python_of(version: str) -> str:
    """The interpreter of a version, such as 3.12."""
    found = shutil.which(f"python{version}")
    # A version manager may put a name on the path that answers for no interpreter.
    if found is None or subprocess.run([found, "--version"], capture_output=True, check=False).returncode:
        sys.exit(f"There is no python{version} on the path. Install it, or name environments of another Python.")
    return found


def make(name: str) -> Path:
    """The environment's Python; the environment is made where it is missing, the package installed anew."""
    kind, _, version = name.partition("-")
    folder = CACHE / name
    python = folder / "bin" / "python"
    if not (folder / "made").exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([python_of(version), "-m", "venv", str(folder)], check=True)
        pip(python, *requirements(kind), *TOOLS)
        (folder / "made").touch()
    pip(python, "--no-deps", "--force-reinstall", str(wheel()))
    return python


def pip(python: Path, *arguments: str) -> None:
    """Install something."""
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *arguments], check=True)


def wheel() -> Path:
    """The package as a wheel."""
    folder = CACHE / "wheel"
    shutil.rmtree(folder, ignore_errors=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(folder),
        str(REPOSITORY),
    ]
    subprocess.run(command, check=True)
    return next(folder.glob("*.whl"))


def count(python: Path, arguments: list[str]) -> dict[str, int]:
    """Run the tests; how many passed, failed and were skipped."""
    command = [str(python), "-m", "pytest", "-q", "-rf", "-p", "no:cacheprovider", *arguments, *TESTED]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout[-6000:])
    closing = done.stdout.rstrip().rpartition("\n")[2]
    counted = {
        word.rstrip("s"): int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)", closing)
    }
    if done.returncode not in (0, 1) or not counted:
        sys.exit(f"pytest did not get to its end: {closing}")
    return counted


def small_run(python: Path) -> bool:
    """One epoch on some of the demo's photographs, and an evaluation of the adapter."""
    output = CACHE / "small_run"
    shutil.rmtree(output, ignore_errors=True)
    sensitune = [str(python), "-m", "sensitune"]
    run = (
        "run --model dinov2_vit_s14_focus --backbone.image-size 70 --backbone.num-blocks 2 --data demo --budget 20_000"
    )
    run += " --data.max-train 40 --data.max-test 40 --sensitivity.num-batches 2 --epochs 1 --rank 4 --device cpu"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if subprocess.run([*sensitune, *run.split(), "--output", str(output)], env=environment, check=False).returncode:
        return False
    command = [*sensitune, "evaluate", str(output)]
    return subprocess.run(command, env=environment, check=False).returncode == 0


def versions(python: Path) -> list[str]:
    """Python's own version and those that the table shows."""
    code = f"import platform, importlib.metadata as m; print(platform.python_version(), *map(m.version, {SHOWN!r}))"
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.split()


def record(name: str, cells: list[str]) -> None:
    """Put an environment's line into the table."""
    page = TABLE.read_text(encoding="utf-8")
    before, begin, rest = page.partition("<!-- matrix: python tests/matrix.py -->\n")
    old, end, after = rest.partition("<!-- /matrix -->")
    if not begin or not end:
        sys.exit(f"{TABLE} has no place for the table.")
    lines = {line.split("|")[1].strip(): line for line in old.splitlines()[2:]}
    lines[name] = f"| {' | '.join([name, *cells])} |"
    order = sorted(lines, key=lambda each: ENVIRONMENTS.index(each) if each in ENVIRONMENTS else len(ENVIRONMENTS))
    table = "\n".join([HEAD, "|" + "---|" * HEAD.count(" | ") + "---|", *(lines[each] for each in order)])
    TABLE.write_text(f"{before}{begin}{table}\n{end}{after}", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Make the environments, run the tests, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environments", nargs="*", default=list(ENVIRONMENTS), help="such as lowest-3.11")
    given, options = parser.parse_known_args(arguments)
    failed = []
    for name in given.environments:
        if not re.fullmatch(r"(lowest|newest)-3\.\d+", name):
            sys.exit(f"An environment is lowest or newest, a dash and a Python, such as lowest-3.11. Got {name!r}.")
        python = make(name)
        python_version, *shown = versions(python)
        counted = count(python, options)
        ran = small_run(python) if name.startswith("lowest") else None
        wrong = counted.get("failed", 0) + counted.get("error", 0)
        outcome = [str(counted.get("passed", 0)), str(wrong), str(counted.get("skipped", 0))]
        date = datetime.now(UTC).date().isoformat()
        record(name, [python_version, *shown, *outcome, {None: "", True: "works", False: "fails"}[ran], date])
        if wrong or ran is False:
            failed.append(name)
    print(f"Failed in {', '.join(failed)}." if failed else f"Passed in {', '.join(given.environments)}.")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
