"""The modules that train whole beside an adapter, the head above all: each by its exact name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft.utils import ModulesToSaveWrapper
from torch import nn

from sensitune.errors import ModelError
from sensitune.sites import quantised_kind

# With these task types PEFT itself goes through the model once more, and knows suffixes only.
_BY_SUFFIX = frozenset({"SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"})
_INTERNAL = frozenset({"original_module", "modules_to_save"})


@contextmanager
def exact_modules_to_save(model: nn.Module, config: Any, adapter: str, active: list[str]) -> Iterator[None]:
    """Keep ``modules_to_save`` of a site plan from PEFT while it injects an adapter, then wrap those modules.

    PEFT takes every module whose name ends like one of the names. Here a module's full name stands for that module
    alone; a name that is none is matched as PEFT does.

    Args:
        model: The model that gets the adapter.
        config: Its configuration. Without a site plan it is a PEFT configuration like any other, and left alone.
        adapter: Its name.
        active: Names of the adapters that are active.

    Raises:
        ModelError: If the configuration has a task type for which PEFT matches suffixes anyway and that makes a
            difference, a module goes by two names, or one is stored in few bits.
    """
    names = config.modules_to_save
    if config.site_plan is None or not names:
        yield
        return
    whole = _resolved(model, names)
    _refuse_aliases(model, whole)
    _refuse_quantised(model, whole)
    if config.task_type in _BY_SUFFIX:
        _refuse_others(model, names, whole, config.task_type)
    config.modules_to_save = None
    try:
        yield
    finally:
        config.modules_to_save = names
    for name in whole:
        _wrap(model, name, adapter, active=adapter in active, inference_mode=config.inference_mode)


def _resolved(model: nn.Module, names: list[str]) -> dict[str, None]:
    """Full names of the modules, in the order of the model."""
    present = [name for name, _ in model.named_modules() if _INTERNAL.isdisjoint(name.split("."))]
    suffixes = tuple(set(names) - set(present))
    return dict.fromkeys(name for name in present if name in names or (suffixes and name.endswith(suffixes)))


def _refuse_quantised(model: nn.Module, whole: dict[str, None]) -> None:
    for name in whole:
        for own, module in model.get_submodule(name).named_modules(prefix=name):
            if quantised_kind(module) is not None:
                raise ModelError(
                    f"`{name}` is to train whole, but `{own}` is stored in few bits by {type(module).__name__}. Load "
                    "the model with it left out of the quantisation (transformers: `llm_int8_skip_modules`, "
                    "`modules_to_not_convert`), or put a new layer in its place."
                )


def _refuse_others(model: nn.Module, names: list[str], whole: dict[str, None], task_type: str) -> None:
    inside = tuple(f"{name}." for name in whole)
    for name, _ in model.named_modules():
        if name.endswith(tuple(names)) and name not in whole and not name.startswith(inside):
            raise ModelError(
                f"With the task type {task_type} PEFT would train `{name}` whole as well, because its name ends like "
                f"one of {', '.join(dict.fromkeys(names))}. Leave `task_type` out."
            )


def _refuse_aliases(model: nn.Module, whole: dict[str, None]) -> None:
    modules = {id(model.get_submodule(name)): name for name in whole}
    for name, module in model.named_modules(remove_duplicate=False):
        first = modules.get(id(module), name)
        if first != name and name.rpartition(".")[0] == first.rpartition(".")[0]:
            raise ModelError(
                f"`{first}` is to be trained whole, and `{name}` is the same module, which would keep the "
                "base's values. Give the model one name for it."
            )


def _wrap(model: nn.Module, name: str, adapter: str, *, active: bool, inference_mode: bool) -> None:
    module = model.get_submodule(name)
    if isinstance(module, ModulesToSaveWrapper):
        wrapper: Any = module
        wrapper.update(adapter)
        wrapper.set_adapter(wrapper.active_adapter, inference_mode=inference_mode)
        return
    wrapper = ModulesToSaveWrapper(module, adapter)  # type: ignore[no-untyped-call]
    wrapper.set_adapter([adapter] if active else [], inference_mode=inference_mode)
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, wrapper)
