"""PEFT's own tests accept SPT. Run with ``pytest -m slow`` or, with the full output, ``make acceptance``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(1200)
def test_pefts_own_tests_pass() -> None:
    pytest.importorskip("diffusers", reason="PEFT's tests import it: pip install 'sensitune[acceptance]'")
    run = Path(__file__).with_name("run.py")
    done = subprocess.run([sys.executable, str(run)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
