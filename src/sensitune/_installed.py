"""What is installed: the stack that the core needs, and the extras without which parts of it stay closed.

The core (sites, scores, allocation, tuner) needs torch, PEFT and what they bring. Pictures, the command line, Ray and
the demo's data are extras. What each needs, and from which version on, is said once, in ``pyproject.toml``, and read
here from the installed package.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Literal

from packaging.requirements import Requirement

from sensitune.errors import MissingPackageError, VersionError

Extra = Literal["vision", "cli", "page", "ray", "slurm", "auto", "quantised", "demo", "vtab"]
_PACKAGE = "sensitune"


@dataclass(frozen=True)
class Package:
    """A package that is needed.

    Attributes:
        name: Its name.
        needed: Which releases, such as ``>=2.6``.
        found: The installed release; None if there is none.
    """

    name: str
    needed: str
    found: str | None

    @property
    def is_new_enough(self) -> bool:
        """Whether the installed release is one of those needed; true where there is none."""
        return self.found is None or Requirement(f"{self.name}{self.needed}").specifier.contains(
            self.found, prereleases=True
        )


def packages(extra: Extra | None) -> list[Package]:
    """What the core or an extra needs.

    Args:
        extra: Its name; None is the core.

    Returns:
        The packages, as ``pyproject.toml`` lists them.
    """
    return [Package(name, str(required.specifier), _version(name)) for name, required in _requirements(extra)]


def need(extra: Extra, *, what: str) -> None:
    """Make sure that an extra is installed.

    Args:
        extra: Its name.
        what: What needs it, as the subject of a sentence.

    Raises:
        MissingPackageError: If a package of it is missing; the sentence says how to get it.
        VersionError: If one is older than what the tests have been run with.
    """
    for package in packages(extra):
        if package.found is None:
            raise MissingPackageError(
                f"{what} needs {package.name}, which is not installed. Install the extra: {install_line(extra)}"
            )
        _check(package)


def check_stack() -> None:
    """Make sure that what the core stands on is not older than what it was tested with.

    Raises:
        VersionError: If it is, with the version found and the one needed.
    """
    for package in packages(None):
        _check(package)


def install_line(extra: Extra) -> str:
    """The command that installs an extra."""
    return f"pip install '{_PACKAGE}[{extra}]'"


def _check(package: Package) -> None:
    if not package.is_new_enough:
        raise VersionError(
            f"{_PACKAGE} needs {package.name} {package.needed}. Found {package.found}. Upgrade it: "
            f"pip install '{package.name}{package.needed}'"
        )


@lru_cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@lru_cache
def _requirements(extra: str | None) -> tuple[tuple[str, Requirement], ...]:
    return tuple(_read_requirements(extra))


def _read_requirements(extra: str | None) -> Iterator[tuple[str, Requirement]]:
    try:
        lines = requires(_PACKAGE) or []
    except PackageNotFoundError:  # sources on the path, not an installed package: whoever does that knows what he has
        return
    for line in lines:
        required = Requirement(line)
        for_all = required.marker is None or required.marker.evaluate({"extra": ""})
        if for_all if extra is None else not for_all and required.marker.evaluate({"extra": extra}):  # type: ignore[union-attr]
            yield required.name, required
