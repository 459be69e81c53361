"""Run PEFT's own tests, unedited, against SPT: ``make acceptance``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
CACHE = REPOSITORY / ".cache" / "acceptance"
MODELS = CACHE / "models"
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_CACHE": str(CACHE / "datasets"),
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",
}

# After the environment, which the libraries read when they are imported.
import pytest  # noqa: E402
import torch  # noqa: E402
from adoption import locate  # noqa: E402
from exemptions import DESELECTED, SKIPPED, Exemption  # noqa: E402

from sensitune import SptConfig  # noqa: E402

MINIMUM_PASSED = 1400


def peft_tests() -> Path:
    """The test folder of the source distribution of the pinned PEFT, downloaded once."""
    pins = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8")
    found = re.search(r"^peft==(\S+)$", pins, re.MULTILINE)
    assert found, "constraints.txt pins no peft"
    folder = CACHE / f"peft-{found[1]}"
    if not folder.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=:all:"]
        command += ["--no-build-isolation", "--dest", str(CACHE), f"peft=={found[1]}"]
        subprocess.run(command, check=True)
        with tarfile.open(CACHE / f"peft-{found[1]}.tar.gz") as archive:
            archive.extractall(CACHE, filter="data")
    return folder / "tests"


class Record:
    """A pytest plugin: keeps the tests that are about SPT, and counts what becomes of them."""

    def __init__(self) -> None:
        self.passed = 0
        self.failed: list[str] = []
        self.skipped: Counter[Exemption] = Counter()
        self.unexplained: list[str] = []

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leave out the tests of other methods, and those that the table of exemptions names."""
        ours = [item for item in items if _is_about_spt(item)]
        exempt = {item: each for item in ours for each in DESELECTED if each.covers(item.nodeid)}
        self.skipped.update(exempt.values())
        config.hook.pytest_deselected(items=[item for item in items if item not in ours or item in exempt])
        items[:] = [item for item in ours if item not in exempt]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count one outcome; a skip must have its reason in the table."""
        if report.failed:
            self.failed.append(report.nodeid)
        elif report.skipped:
            reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
            known = next((each for each in SKIPPED if each.covers(reason)), None)
            if known:
                self.skipped[known] += 1
            else:
                self.unexplained.append(f"{report.nodeid}: {reason}")
        elif report.when == "call":
            self.passed += 1

    def verdict(self) -> int:
        """Print what happened; 0 if enough passed, nothing failed and every skip is explained."""
        for each, count in sorted(self.skipped.items(), key=lambda pair: -pair[1]):
            print(f"{count:5} not run: {each.reason}")
        for name in (*self.failed, *self.unexplained):
            print("  ", name)
        print(
            f"{self.passed} passed, {len(self.failed)} failed, {self.skipped.total()} skipped with a reason, "
            f"{len(self.unexplained)} without; at least {MINIMUM_PASSED} must pass."
        )
        return int(bool(self.failed or self.unexplained) or self.passed < MINIMUM_PASSED)


def _is_about_spt(item: pytest.Item) -> bool:
    values = item.callspec.params.values() if hasattr(item, "callspec") else ()
    ours = any(value is SptConfig or isinstance(value, SptConfig) for value in values)
    return ours or item.name == "test_from_peft_type"  # goes through every registered method


def main(arguments: list[str]) -> int:
    """Download, prepare, run; further arguments go to pytest, and then the number of passes is not checked."""
    torch.set_num_threads(1)
    CACHE.mkdir(parents=True, exist_ok=True)
    locate(peft_tests())
    if not MODELS.exists():
        from tiny_models import write_tiny_models

        write_tiny_models(MODELS)
    os.chdir(MODELS)
    record = Record()
    options = ["-c", str(HERE / "settings.ini"), "--rootdir", str(HERE), "-q", *arguments, str(HERE / "suites")]
    status = pytest.main(options, plugins=[record])
    return int(status) if arguments else record.verdict()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
