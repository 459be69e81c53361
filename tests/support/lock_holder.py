"""Another process that works in a folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_HOLD = """
import fcntl, os, platform, sys
descriptor = os.open(sys.argv[1], os.O_CREAT | os.O_RDWR)
fcntl.lockf(descriptor, fcntl.LOCK_EX)
os.write(descriptor, f"process {os.getpid()} on {platform.node()}".encode())
print("held", flush=True)
sys.stdin.read()
"""


class Holder:
    """Holds a lock until it is killed.

    Args:
        lock: The lock's file.
    """

    def __init__(self, lock: Path) -> None:
        lock.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-c", _HOLD, str(lock)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()
