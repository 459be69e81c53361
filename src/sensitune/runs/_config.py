"""Every setting of one run, in frozen values; to YAML and back with unknown keys refused."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Final, get_type_hints

from sensitune._schema import Seed, check, read, read_yaml, to_plain
from sensitune.allocation import parse_budget
from sensitune.backbones import BackboneSpec
from sensitune.data import DataSettings
from sensitune.errors import ArgumentError, ConfigError
from sensitune.runs._scoring import Scoring
from sensitune.runs._settings import AllocationSettings, ComputeSettings, SensitivitySettings
from sensitune.runs.methods import METHODS, AutoMethod, Method
from sensitune.training import Recipe

RECORDED_KEY: Final = "recorded"
_OF_SOME_METHODS: Final = ("budget", "tau", "lora_start", "servable", "peft")


@dataclass(frozen=True)
class RunConfig:
    """One run: which model is tuned on which images, where the parameters go, and how it is trained.

    What its scores depend on are the groups `backbone`, `data` and `sensitivity`, where the head starts, and the seed:
    see `scoring`.
    """

    backbone: BackboneSpec
    """The model that is tuned."""
    data: DataSettings
    """The images."""
    sensitivity: SensitivitySettings = field(default_factory=SensitivitySettings)
    """How the sensitivity is estimated."""
    allocation: AllocationSettings = field(default_factory=AllocationSettings)
    """What is tuned."""
    recipe: Recipe = field(default_factory=Recipe)
    """How it is trained."""
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    """Where it is computed."""
    seed: Seed = 0
    """Seed of everything random: new head, random placement, adapter initialisation, order of the images, dropout."""

    def __post_init__(self) -> None:
        check(self)
        _check_method(self.allocation)
        if isinstance(self.method, AutoMethod):
            _check_auto(self)

    @property
    def method(self) -> Method:
        """The run's method."""
        return METHODS[self.allocation.method]

    @property
    def needs_scores(self) -> bool:
        """Whether the run takes the first stage."""
        return self.method.needs_scores(self.allocation)

    @property
    def scoring(self) -> Scoring:
        """What the run's scores depend on, and nothing else."""
        sensitivity = self.method.scoring(self.allocation, self.sensitivity)
        # Whether a run ends on the test split is nothing to its scores.
        return Scoring(self.backbone, replace(self.data, test=False), sensitivity, self.recipe.head_start, self.seed)

    def to_dict(self) -> dict[str, Any]:
        """Every setting, ready for YAML."""
        return to_plain(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any], *, source: str | os.PathLike[str] | None = None) -> RunConfig:
        """Read what `to_dict` wrote, or a person.

        Args:
            values: Group -> setting -> value; what is left out takes its default.
            source: The file that they are from, named in messages; None if there is none.

        Returns:
            The configuration.

        Raises:
            ConfigError: If a key is unknown (the closest known one is named), missing, outside its group, or of the
                wrong type.
        """
        groups = {each.name: get_type_hints(cls)[each.name] for each in fields(cls)}
        for key in values.keys() - groups.keys():
            for name, group in groups.items():
                if is_dataclass(group) and key in {each.name for each in fields(group)}:
                    sentence = f"`{key}` is a setting of the group `{name}`. Write `{name}: {{{key}: ...}}`."
                    raise ConfigError(sentence if source is None else f"{os.fspath(source)}: {sentence}")
        return read(cls, values, source=source)

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str]) -> RunConfig:
        """Read a configuration file, or the ``run.yaml`` of a run folder.

        Args:
            path: The file.

        Returns:
            The configuration.

        Raises:
            ConfigError: If the file is missing, is no YAML, or `from_dict` refuses it.
        """
        values = read_yaml(path)
        values.pop(RECORDED_KEY, None)
        return cls.from_dict(values, source=path)


def _check_auto(config: RunConfig) -> None:
    """Refuse what auto finds for itself, and what leaves it nothing to choose by."""
    for group, names in AutoMethod.finds.items():
        settings = getattr(config, group)
        defaults = {each.name: each.default for each in fields(settings)}
        for name in names:
            if (value := getattr(settings, name)) != defaults[name]:
                raise ArgumentError(
                    f"`{group}.{name}` is what each candidate of the method auto has a value of its own for. Got "
                    f"{value}. Leave it out, or name a method."
                )
    if config.recipe.epochs < (fewest := AutoMethod.fewest_epochs):
        raise ArgumentError(
            f"`recipe.epochs` must be at least {fewest} with the method auto, which tries its candidates for a sixth "
            f"of them. Got {config.recipe.epochs}."
        )
    if config.data.train_on_validation:
        raise ArgumentError(
            "`data.train_on_validation` leaves no validation split for the method auto to choose on. Leave it out, or "
            "name a method."
        )


def _check_method(settings: AllocationSettings) -> None:
    """Refuse settings that mean nothing to the method, or contradict each other."""
    method = METHODS[settings.method]
    defaults = {each.name: each.default for each in fields(settings)}
    for name in _OF_SOME_METHODS:
        if getattr(settings, name) == defaults[name] or name in method.takes:
            continue
        owners = [each.name for each in METHODS.values() if name in each.takes]
        belongs = f"the methods {', '.join(owners)}" if len(owners) > 1 else f"the method {owners[0]}"
        preset = ", or the preset that sets it," if name == "lora_start" else ""
        raise ArgumentError(
            f"`allocation.{name}` belongs to {belongs}, not to {settings.method}. Leave it{preset} out."
        )
    if settings.method == "peft" and settings.peft is None:
        raise ArgumentError("The method peft needs `allocation.peft`, such as {peft_type: LORA, use_dora: true}.")
    # What a share comes to is known with the model; whether the budget can be read is known now.
    if settings.budget is not None and parse_budget(settings.budget, backbone_params=10**12) < 1:
        raise ArgumentError(f"`allocation.budget` must be above 0. Got {settings.budget!r}.")
    if settings.tau is not None and settings.budget is not None:
        raise ArgumentError(
            f"Give `allocation.budget` or `allocation.tau`, not both. Got {settings.budget!r} and {settings.tau:,}."
        )
