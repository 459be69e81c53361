"""Tasks × methods × settings × seeds in one YAML file, such as those of ``recipes/``."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from annotated_types import MinLen

from sensitune._files import atomic_write
from sensitune._schema import NonEmptyText, Rule, Seed, check, dump_yaml, load, read, shorten, to_plain
from sensitune.data import FGVC_DATASETS, VTAB_TASKS
from sensitune.errors import ArgumentError
from sensitune.runs import RunConfig
from sensitune.sweeps._key import RunKey, Setting, SettingValue, describe, slug
from sensitune.sweeps._merge import dotted_names, merge_settings, nest
from sensitune.sweeps._published import Published

# What a sweep decides for its runs.
_OF_THE_SWEEP = ("data.source", "data.train_on_validation", "data.test", "seed")


def _all_different(values: Sequence[object]) -> bool:
    return 0 < len(values) == len(set(values))


Seeds: TypeAlias = Annotated[
    tuple[Seed, ...], Rule("a list of whole numbers from 0, at least one, each once", _all_different)
]
Sources: TypeAlias = Annotated[tuple[NonEmptyText, ...], MinLen(1)]
Groups: TypeAlias = Annotated[Mapping[NonEmptyText, Sources], Rule("lists of data by group (natural: [...])", bool)]
Methods: TypeAlias = Annotated[
    Mapping[NonEmptyText, Mapping[str, Any]],
    Rule("groups of settings, at least one, such as `SPT-LoRA: {allocation: {method: spt-lora}}`", bool),
]
Tried: TypeAlias = Annotated[tuple[SettingValue, ...], Rule("a list of at least one value, each once", _all_different)]


@dataclass(frozen=True)
class SweepConfig:
    """A sweep: every method on every task, its settings chosen on the validation split, with several seeds."""

    tasks: Literal["vtab1k", "fgvc"] | Groups
    """Group -> sources of its tasks' data, each the `DataSettings.source` of its runs; or a benchmark with all of its.
    A task is called what its source ends with."""
    methods: Methods
    """Label -> settings of its runs, in groups, as in `RunConfig`."""
    run: Mapping[str, Any] = field(default_factory=dict)
    """Settings that all methods share, where they have none of their own."""
    choose: Mapping[NonEmptyText, Tried] = field(default_factory=dict)
    """Dotted name of a setting (allocation.budget, recipe.learning_rate) -> the values that are tried on the validation
    split, in every combination. Ties go to the first."""
    choose_by: Literal["task", "method"] = "task"
    """Whether every task gets its own choice, or all tasks share the one with the best mean."""
    choose_seeds: Seeds = (0,)
    """Seeds of the runs that settings are chosen with."""
    choose_tasks: tuple[str, ...] = ()
    """With choose_by method, the tasks that decide; empty = all."""
    retrain: bool = True
    """Whether the chosen settings train once more, on training and validation images together, or the chosen runs
    themselves are tested."""
    seeds: Seeds = (0, 1, 2)
    """Seeds of the runs that are tested."""
    published: Published | None = None
    """A row to stand beside the results."""
    about: str = ""
    """What it is."""
    command: str = ""
    """How it is started."""
    hardware: str = ""
    """What it was meant for."""

    def __post_init__(self) -> None:
        check(self)
        self._check_tasks()
        self._check_labels()
        self._check_choice()
        self._check_retraining()
        for label in self.methods:
            for setting in self.candidates():
                self.run_config(RunKey(next(iter(self.sources)), label, setting, seed=0))

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str]) -> SweepConfig:
        """Read a sweep's file.

        Args:
            path: The file.

        Returns:
            The sweep.

        Raises:
            ConfigError: If the file is missing, is no YAML, or `from_dict` refuses it.
        """
        return load(cls, path)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as YAML that `from_yaml` reads back.

        Args:
            path: The file; whoever has the sweep's folder has its settings.
        """
        with atomic_write(path) as temporary:
            temporary.write_text(dump_yaml(to_plain(self)), encoding="utf-8")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SweepConfig:
        """Read the settings of a sweep.

        Args:
            values: Field -> value, as in a file.

        Returns:
            The sweep.

        Raises:
            ConfigError: If a key is unknown, missing, or has a value that makes no sense.
        """
        return read(cls, values)

    @cached_property
    def groups(self) -> Mapping[str, tuple[str, ...]]:
        """Group -> names of its tasks."""
        return {group: tuple(Path(each).name for each in sources) for group, sources in self._sources.items()}

    @cached_property
    def sources(self) -> Mapping[str, str]:
        """Task -> its data."""
        return {Path(each).name: each for each in itertools.chain.from_iterable(self._sources.values())}

    @property
    def _sources(self) -> Mapping[str, Sequence[str]]:
        if self.tasks == "vtab1k":
            by_group = itertools.groupby(VTAB_TASKS.values(), key=lambda task: task.group)
            return {group: [f"vtab1k/{task.name}" for task in tasks] for group, tasks in by_group}
        if self.tasks == "fgvc":
            return {"fgvc": [f"fgvc/{name}" for name in FGVC_DATASETS]}
        return self.tasks

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Every (task, method)."""
        return itertools.product(self.sources, self.methods)

    def candidates(self) -> list[Setting]:
        """Every combination of the values that are tried; one empty one where nothing is."""
        return [dict(zip(self.choose, values, strict=True)) for values in itertools.product(*self.choose.values())]

    def run_config(self, key: RunKey) -> RunConfig:
        """The settings of one run; the test split is left to the sweep.

        Args:
            key: The run.

        Returns:
            The settings.

        Raises:
            ConfigError: If there is no such setting, or a value makes no sense.
        """
        of_the_sweep = (self.sources[key.task], key.retrained, False, key.seed)
        decided = nest({**key.setting, **dict(zip(_OF_THE_SWEEP, of_the_sweep, strict=True))})
        return RunConfig.from_dict(merge_settings(self.run, self.methods[key.method], decided))

    def method_config(self, label: str) -> RunConfig:
        """The settings of a method, as its run on the first task with seed 0 has them before anything is chosen.

        Args:
            label: The method.

        Returns:
            The settings.
        """
        return self.run_config(RunKey(next(iter(self.sources)), label, {}, seed=0))

    def with_settings(self, settings: Setting) -> SweepConfig:
        """The sweep with some settings of all its runs replaced.

        Args:
            settings: Dotted name, such as ``data.root`` and ``compute.device``, -> value.

        Returns:
            A new sweep.
        """
        return replace(
            self, methods={label: merge_settings(own, nest(settings)) for label, own in self.methods.items()}
        )

    def _check_tasks(self) -> None:
        seen: dict[str, str] = {}
        for source in itertools.chain.from_iterable(self._sources.values()):
            name = Path(source).name
            if name in ("", ".."):
                raise ArgumentError(f"`tasks` has {source!r}, which names no folder of its own. Write its path.")
            if name in seen:
                raise ArgumentError(f"`tasks` has two tasks named {name!r}: {seen[name]} and {source}. Rename one.")
            seen[name] = source
        if self.published is not None:
            named = {*self.published.groups, *self.published.tasks}
            if unknown := sorted(named - {*self.groups, *self.sources}):
                raise ArgumentError(
                    f"`published` has {unknown[0]!r}, which is neither a group nor a task of the sweep."
                )

    def _check_labels(self) -> None:
        folders: dict[str, str] = {}
        for label in self.methods:
            if (other := folders.setdefault(slug(label), label)) != label:
                raise ArgumentError(
                    f"`methods` has {other!r} and {label!r}, whose folders would have one name. Rename one."
                )

    def _check_retraining(self) -> None:
        for label in self.methods:
            if self.retrain and self.method_config(label).method.name == "auto":
                raise ArgumentError(
                    f"`methods` has {label!r}, of the method auto, which chooses on the validation split, and with "
                    "`retrain: true` its runs would train on it. Set `retrain: false`."
                )

    def _check_choice(self) -> None:
        if self.choose_tasks and self.choose_by != "method":
            raise ArgumentError("`choose_tasks` needs `choose_by: method`: otherwise every task chooses for itself.")
        if missing := [name for name in self.choose_tasks if name not in self.sources]:
            raise ArgumentError(
                f"`choose_tasks` has {missing[0]!r}, which is not among the tasks: {', '.join(self.sources)}."
            )
        given = {"choose": self.choose, "run": [*dotted_names(self.run)]}
        given |= {f"methods.{label}": [*dotted_names(own)] for label, own in self.methods.items()}
        for where, names in given.items():
            if taken := next((name for name in names if _is_of_the_sweep(name)), None):
                raise ArgumentError(f"`{where}` has `{taken}`, which is set by the sweep itself. Leave it out.")
        known = {name for label in self.methods for name in dotted_names(self.method_config(label).to_dict())}
        if unknown := sorted(self.choose.keys() - known):
            raise ArgumentError(
                f"`choose` has {shorten(unknown[0])}, which is not a setting of a run, such as allocation.budget or "
                "recipe.learning_rate."
            )
        names = [describe(setting) for setting in self.candidates()]
        for index, name in enumerate(names):
            if name in names[:index] or "/" in name:
                raise ArgumentError(
                    f"`choose` gives a run the name {name!r}, which must be a folder's, and no other run's. "
                    "Change its values, or make each a method of its own."
                )


def _is_of_the_sweep(name: str) -> bool:
    """Whether a setting is one that the sweep decides, or is in the way of one."""
    return any(f"{each}.".startswith(f"{name}.") or name.startswith(f"{each}.") for each in _OF_THE_SWEEP)
