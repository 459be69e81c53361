"""Tasks × methods × settings × seeds in one YAML file, such as those of ``recipes/``."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from sensitune._schema import read_yaml
from sensitune.data import FGVC_DATASETS, VTAB_TASKS
from sensitune.errors import ConfigError
from sensitune.runs import RunConfig

ChooseBy = Literal["task", "method"]
Setting = Mapping[str, Any]
# What a sweep decides for its runs.
_OF_THE_SWEEP = frozenset({"data.source", "data.train_on_validation", "data.test", "seed"})
_TEXTS = ("about", "command", "hardware")


@dataclass(frozen=True)
class Published:
    """A published result to stand beside ours, in per cent as printed.

    Attributes:
        label: What its row is called.
        source: Where it is printed.
        groups: Group -> mean.
        tasks: Task -> accuracy.
        mean: The headline mean.
    """

    label: str
    source: str
    groups: Mapping[str, float] = field(default_factory=dict)
    tasks: Mapping[str, float] = field(default_factory=dict)
    mean: float | None = None


@dataclass(frozen=True)
class SweepConfig:
    """A sweep: every method on every task, its settings chosen on the validation split, with several seeds.

    Attributes:
        tasks: Group -> names of the tasks; ``vtab1k`` and ``fgvc`` in a file stand for all of theirs.
        sources: Task -> its `DataSettings.source`.
        methods: Label -> settings; the task and the seed are filled in for each run.
        choose: Setting (``allocation.budget``, ``recipe.learning_rate``) -> the values that are tried on the validation
            split, in every combination. Ties go to the first.
        choose_by: ``"task"``: every task gets its own choice; ``"method"``: all tasks share the one with the best mean.
        choose_seeds: Seeds of the runs that settings are chosen with.
        choose_tasks: With ``choose_by="method"``, the tasks that decide; empty = all.
        retrain: True: the chosen settings train once more, on training and validation images together. False: the
            chosen runs themselves are tested.
        seeds: Seeds of the runs that are tested.
        published: A row to stand beside the results.
        about: What it is.
        command: How it is started.
        hardware: What it was meant for.
    """

    tasks: Mapping[str, tuple[str, ...]]
    sources: Mapping[str, str]
    methods: Mapping[str, RunConfig]
    choose: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    choose_by: ChooseBy = "task"
    choose_seeds: tuple[int, ...] = (0,)
    choose_tasks: tuple[str, ...] = ()
    retrain: bool = True
    seeds: tuple[int, ...] = (0, 1, 2)
    published: Published | None = None
    about: str = ""
    command: str = ""
    hardware: str = ""

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
        return cls.from_dict(read_yaml(path))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SweepConfig:
        """Read the settings of a sweep.

        Args:
            values: As in a file: the attributes of the class but for `sources`, and ``run``, the settings that all
                methods share.

        Returns:
            The sweep.

        Raises:
            ConfigError: If a key is unknown, missing, or has a value that makes no sense.
        """
        known = {each.name for each in fields(cls)} - {"sources"} | {"run"}
        if unknown := [key for key in values if key not in known]:
            raise ConfigError(f"`{unknown[0]}` is not a setting of a sweep. It has: {', '.join(sorted(known))}.")
        tasks, sources = _read_tasks(values.get("tasks"))
        shared = _mapping(values.get("run", {}), "run")
        methods = {
            label: _run_config(shared, _mapping(own, f"methods.{label}"), next(iter(sources.values())))
            for label, own in _mapping(values.get("methods", {}), "methods").items()
        }
        plain: dict[str, Any] = {name: values[name] for name in (*_TEXTS, "retrain", "choose_by") if name in values}
        lists: dict[str, Any] = {
            name: tuple(_list(values[name], name))
            for name in ("seeds", "choose_seeds", "choose_tasks")
            if name in values and (name, values[name]) != ("choose_tasks", [])
        }
        published = values.get("published")
        config = cls(
            tasks=tasks,
            sources=sources,
            methods=methods,
            choose={
                key: tuple(_list(tried, f"choose.{key}"))
                for key, tried in _mapping(values.get("choose", {}), "choose").items()
            },
            published=None if published is None else _read_published(_mapping(published, "published")),
            **plain,
            **lists,
        )
        config._check()
        return config

    def _check(self) -> None:
        if self.choose_by not in ("task", "method"):
            raise ConfigError(f"`choose_by` must be task or method. Got {self.choose_by!r}.")
        if not isinstance(self.retrain, bool):
            raise ConfigError(f"`retrain` must be true or false. Got {self.retrain!r}.")
        for name in _TEXTS:
            if not isinstance(getattr(self, name), str):
                raise ConfigError(f"`{name}` must be text. Got {getattr(self, name)!r}.")
        for name in ("seeds", "choose_seeds"):
            _check_seeds(name, getattr(self, name))
        self._check_methods()
        self._check_choice()
        if self.published is not None:
            named = {*self.published.groups, *self.published.tasks}
            if unknown := sorted(named - {*self.tasks, *self.sources}):
                raise ConfigError(f"`published` has {unknown[0]!r}, which is neither a group nor a task of the sweep.")

    def _check_methods(self) -> None:
        if not self.methods:
            raise ConfigError("`methods` must name at least one method, such as `SPT-LoRA: {method: spt-lora}`.")
        folders: dict[str, str] = {}
        for label in self.methods:
            if (other := folders.setdefault(slug(label), label)) != label:
                raise ConfigError(
                    f"`methods` has {other!r} and {label!r}, whose folders would have one name. Rename one."
                )

    def _check_choice(self) -> None:
        if self.choose_tasks and self.choose_by != "method":
            raise ConfigError("`choose_tasks` needs `choose_by: method`: otherwise every task chooses for itself.")
        if missing := [name for name in self.choose_tasks if name not in list(self.sources)]:
            named = ", ".join(self.sources)
            raise ConfigError(f"`choose_tasks` has {missing[0]!r}, which is not among the tasks: {named}.")
        for key, values in self.choose.items():
            if twice := [value for index, value in enumerate(values) if value in values[:index]]:
                raise ConfigError(f"`choose.{key}` has a value twice: {twice[0]}.")
            if key in _OF_THE_SWEEP:
                raise ConfigError(f"`choose` has {key!r}, which is set by the sweep itself. Leave it out.")
        self._check_names()
        for label in self.methods:
            for setting in self.candidates():
                self.run_config(label, next(iter(self.sources)), setting, seed=0)

    def _check_names(self) -> None:
        names = [describe(setting) for setting in self.candidates()]
        for index, name in enumerate(names):
            if name in names[:index] or "/" in name:
                raise ConfigError(
                    f"`choose` gives a run the name {name!r}, which must be a folder's, and no other run's. "
                    "Change its values, or make each a method of its own."
                )

    def candidates(self) -> list[Setting]:
        """Every combination of the values that are tried; one empty one where nothing is."""
        return [dict(zip(self.choose, values, strict=True)) for values in itertools.product(*self.choose.values())]

    def run_config(self, label: str, task: str, setting: Setting, *, seed: int, retrain: bool = False) -> RunConfig:
        """The settings of one run; the test split is left to the sweep.

        Args:
            label: The method.
            task: The task.
            setting: What is tried or was chosen.
            seed: The run's seed.
            retrain: Train on the validation images too.

        Returns:
            The settings.

        Raises:
            ConfigError: If a setting that is tried does not exist.
        """
        of_the_sweep = {
            "data.source": self.sources[task],
            "data.train_on_validation": retrain,
            "data.test": False,
            "seed": seed,
        }
        return _with(self.methods[label], {**setting, **of_the_sweep})

    def with_settings(self, settings: Setting) -> SweepConfig:
        """The sweep with some settings of all its runs replaced.

        Args:
            settings: Dotted name, such as ``data.root`` and ``compute.device``, -> value.

        Returns:
            A new sweep.
        """
        return replace(self, methods={label: _with(config, settings) for label, config in self.methods.items()})

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Every (task, method)."""
        return itertools.product(self.sources, self.methods)


def describe(setting: Setting) -> str:
    """A setting in a folder's name: ``budget=400000``; ``plain`` for none."""
    return ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in setting.items()) or "plain"


def _check_seeds(name: str, seeds: tuple[Any, ...]) -> None:
    if any(type(seed) is not int or seed < 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise ConfigError(f"`{name}` must be whole numbers from 0, each once. Got {list(seeds)}.")


def slug(label: str) -> str:
    """A label as a folder's name: ``uniform-lora-r-1``."""
    return "-".join("".join(letter if letter.isalnum() else " " for letter in label.lower()).split())


def _read_tasks(value: Any) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """Group -> task names, and task name -> data source."""
    if value == "vtab1k":
        groups: dict[str, list[str]] = {}
        for task in VTAB_TASKS.values():
            groups.setdefault(task.group, []).append(f"vtab1k/{task.name}")
    elif value == "fgvc":
        groups = {"fgvc": [f"fgvc/{name}" for name in FGVC_DATASETS]}
    elif isinstance(value, Mapping) and value:
        groups = {str(group): list(map(str, _list(sources, f"tasks.{group}"))) for group, sources in value.items()}
    else:
        raise ConfigError(f"`tasks` must be vtab1k, fgvc, or lists of data by group (natural: [...]). Got {value!r}.")
    sources: dict[str, str] = {}
    for source in itertools.chain.from_iterable(groups.values()):
        name = Path(source).name
        if name in ("", ".."):
            raise ConfigError(f"`tasks` has {source!r}, which names no folder of its own. Write the folder's path.")
        if name in sources:
            raise ConfigError(f"`tasks` has two tasks named {name!r}: {sources[name]} and {source}. Rename one.")
        sources[name] = source
    return {group: tuple(Path(each).name for each in named) for group, named in groups.items()}, sources


def _run_config(shared: Mapping[str, Any], own: Mapping[str, Any], source: str) -> RunConfig:
    for values in (shared, own):
        given = {
            *values,
            *(f"{group}.{key}" for group, each in values.items() if isinstance(each, dict) for key in each),
        }
        if taken := sorted(_OF_THE_SWEEP & given):
            raise ConfigError(f"`{taken[0]}` is set by the sweep itself. Leave it out of `run` and `methods`.")
    merged = dict(shared)
    for key, value in own.items():
        merged[key] = {**_mapping(shared.get(key, {}), f"run.{key}"), **value} if isinstance(value, Mapping) else value
    data = {**_mapping(merged.get("data", {}), "run.data"), "source": source}
    return RunConfig.from_dict(merged | {"data": data})


def _with(config: RunConfig, settings: Setting) -> RunConfig:
    """A run's settings with some replaced by their dotted names."""
    values = config.to_dict()
    for name, value in settings.items():
        *groups, last = name.split(".")
        group: Any = values
        for each in groups:
            group = group.get(each) if isinstance(group, dict) else None
        if not isinstance(group, dict) or last not in group or isinstance(group[last], dict):
            raise ConfigError(
                f"`choose` has {name!r}, which is not a setting of a run, such as allocation.budget or "
                "recipe.learning_rate."
            )
        group[last] = value
    return RunConfig.from_dict(values)


def _read_published(values: Mapping[str, Any]) -> Published:
    known = {each.name for each in fields(Published)}
    if unknown := sorted(values.keys() - known):
        raise ConfigError(f"`published.{unknown[0]}` is not a setting. It has: {', '.join(sorted(known))}.")
    label, source = values.get("label"), values.get("source")
    if not isinstance(label, str) or not isinstance(source, str):
        raise ConfigError(f"`published` needs a label and a source, both text. Got {label!r} and {source!r}.")
    groups, tasks = (_mapping(values.get(name, {}), f"published.{name}") for name in ("groups", "tasks"))
    for name, score in [*groups.items(), *tasks.items(), ("mean", values.get("mean"))]:
        _check_score(name, score)
    return Published(label, source, groups, tasks, values.get("mean"))


def _check_score(name: str, score: Any) -> None:
    if name == "mean" and score is None:
        return
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 100:
        raise ConfigError(f"`published` must give {name} in per cent, from 0 to 100. Got {score!r}.")


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"`{name}` must be a group of settings. Got {value!r}.")
    return {str(key): each for key, each in value.items()}


def _list(value: Any, name: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple) or not value:
        raise ConfigError(f"`{name}` must be a list with at least one value. Got {value!r}.")
    return value
