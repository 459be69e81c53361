"""A light installation: the core works without the extras, and each of them that is missing has its sentence."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from sensitune import _installed
from sensitune.errors import MissingPackageError, VersionError

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
# Hides packages from Python's import and from whoever asks for their versions.
HIDE = """
    import importlib.machinery, importlib.metadata, sys

    HIDDEN = {hidden!r}
    find, version = importlib.machinery.PathFinder.find_spec, importlib.metadata.version

    def find_spec(name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN.values() else find(name, path, target)

    def find_version(package):
        if package in HIDDEN:
            raise importlib.metadata.PackageNotFoundError(package)
        return version(package)

    importlib.machinery.PathFinder.find_spec = staticmethod(find_spec)
    importlib.metadata.version = find_version
"""
CORE = """
    import torch, sensitune
    from peft import get_peft_model
    from torch import nn

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.norm, self.head = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.norm(self.body(x).relu()))

    batches = [(torch.randn(4, 8), torch.tensor([0, 1, 2, 0]))]
    sensitivity = sensitune.estimate_sensitivity(Model(), batches)
    allocation = sensitune.allocate(sensitivity, budget=40)
    tuned = get_peft_model(Model(), sensitune.SptConfig.from_allocation(allocation))
    nn.functional.cross_entropy(tuned(batches[0][0]), batches[0][1]).backward()
    merged = tuned.merge_and_unload()
    print("core", sorted(name for name in HIDDEN.values() if name in sys.modules))
    for name in ("data", "backbones", "report", "cli", "runs"):
        try:
            __import__(f"sensitune.{name}")
        except sensitune.errors.MissingPackageError as error:
            print(error)
"""


def test_without_the_extras_the_core_works_and_each_of_the_rest_says_what_it_lacks() -> None:
    hidden = {
        Requirement(line).name: {"pillow": "PIL"}.get(Requirement(line).name, Requirement(line).name)
        for extra in ("vision", "cli", "ray")
        for line in EXTRAS[extra]
    }
    script = textwrap.dedent(HIDE).format(hidden=hidden) + textwrap.dedent(CORE)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    vision = "needs datasets, which is not installed. Install the extra: pip install 'sensitune[vision]'"
    cli = "needs matplotlib, which is not installed. Install the extra: pip install 'sensitune[cli]'"
    assert done.stdout.splitlines() == [
        "core []",
        f"sensitune.data {vision}",
        f"sensitune.backbones {vision}",
        f"sensitune.report {cli}",
        f"The command line {cli}",
        f"sensitune.backbones {vision}",
    ]


def test_what_is_asked_for_is_what_the_project_file_says() -> None:
    assert {name for name, _ in _installed._requirements(None)} == {
        Requirement(line).name for line in PROJECT["dependencies"]
    }
    for extra in ("vision", "cli", "ray", "vtab"):
        named = {Requirement(line).name for line in EXTRAS[extra]}
        assert {name for name, _ in _installed._requirements(extra)} == named


def test_an_older_package_is_named_with_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_installed, "_version", lambda package: "2.5.1" if package == "torch" else "99")
    bound = next(line for line in PROJECT["dependencies"] if line.startswith("torch"))
    sentence = rf"^sensitune needs torch {bound.removeprefix('torch')}. Found 2.5.1. Upgrade it: pip install '{bound}'$"
    with pytest.raises(VersionError, match=sentence):
        _installed.check_stack()


def test_an_older_package_of_an_extra_is_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_installed, "_version", lambda package: "0.1" if package == "timm" else "99")
    with pytest.raises(VersionError, match=r"needs timm >=.* Found 0\.1\."):
        _installed.need("vision", what="sensitune.data")


def test_a_development_release_is_no_older_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_installed, "_version", lambda package: "99.0.dev0+git")
    _installed.check_stack()


def test_sources_that_are_not_installed_are_used_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> list[str]:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(_installed, "requires", missing)
    assert list(_installed._read_requirements("vision")) == []


def test_every_requirement_has_a_lower_bound() -> None:
    lines = [Requirement(line) for line in requires("sensitune") or []]
    assert [
        line.name for line in lines if line.name != "sensitune" and not any(">" in str(s) for s in line.specifier)
    ] == []


def test_a_missing_package_is_an_import_error() -> None:
    assert issubclass(MissingPackageError, ImportError)
    assert issubclass(VersionError, ImportError)
