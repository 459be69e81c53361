"""What a run of a sweep is: its identity, and the folder that follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from sensitune._schema import Seed

SettingValue: TypeAlias = bool | int | float | str | None
Setting: TypeAlias = Mapping[str, SettingValue]
"""Dotted name of a run's setting (``recipe.learning_rate``) -> the value that is tried for it."""


@dataclass(frozen=True)
class RunKey:
    """A run of a sweep.

    Attributes:
        task: The task.
        method: Label of the method.
        setting: What is tried, or was chosen.
        seed: The seed.
        retrained: Whether it trains on the validation images too.
    """

    task: str
    method: str
    setting: Setting
    seed: Seed
    retrained: bool = False

    def __hash__(self) -> int:
        return hash((self.task, self.method, frozenset(self.setting.items()), self.seed, self.retrained))

    def __str__(self) -> str:
        return self.folder.as_posix()

    @property
    def folder(self) -> Path:
        """Its folder within ``runs``: ``TASK/METHOD/SETTING/seedN``."""
        tried = describe(self.setting) + (",retrained" if self.retrained else "")
        return Path(self.task, slug(self.method), tried, f"seed{self.seed}")


def describe(setting: Setting) -> str:
    """A setting in a folder's name.

    Args:
        setting: The setting.

    Returns:
        Such as ``budget=400000``; ``plain`` for none.
    """
    return ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in setting.items()) or "plain"


def slug(label: str) -> str:
    """A method's label as a folder's name.

    Args:
        label: Such as ``Uniform LoRA (r=1)``.

    Returns:
        Such as ``uniform-lora-r-1``.
    """
    return "-".join("".join(letter if letter.isalnum() else " " for letter in label.lower()).split())
