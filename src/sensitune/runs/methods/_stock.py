"""Any other configuration that PEFT knows: DoRA, VeRA, IA3, OFT, ..."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn

from sensitune._schema import read_json, shorten
from sensitune.errors import ArgumentError, ConfigError, SensituneError
from sensitune.runs.methods._method import Method
from sensitune.sites import ModelOutline, find_head

if TYPE_CHECKING:
    from sensitune.runs._run import Run
    from sensitune.runs._settings import AllocationSettings

_FILE = "adapter_config.json"
# What an adapter_config.json says about where it comes from and what it was loaded for.
_OF_THE_FOLDER = frozenset(
    {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type"}
)


class StockMethod(Method):
    """A PEFT configuration as it stands, with the head trained beside it."""

    def title(self, settings: AllocationSettings) -> str:
        """The name of the PEFT type."""
        assert isinstance(settings.peft, Mapping)
        return f"{self.label} ({settings.peft['peft_type']})"

    def check(self, run: Run) -> None:
        """PEFT says whether it can once it has."""
        self.make_tuned(run)

    def make_tuned(self, run: Run) -> PeftModel:
        """What the configuration says, on every linear layer of the backbone unless it names modules."""
        model = run.ingredients.fresh_backbone(drop_path=run.config.recipe.drop_path).model
        given = run.config.allocation.peft
        assert isinstance(given, Mapping)
        try:
            tuned = get_peft_model(model, _complete(given, model, run.ingredients.outline(split_fused=False)))
        except SensituneError:
            raise
        except (AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ArgumentError(
                f"PEFT cannot put the configuration of `allocation.peft` on {run.config.backbone.name}: {error}"
            ) from error
        if not isinstance(tuned, PeftModel):
            raise ArgumentError(
                f"`allocation.peft` of the type {given['peft_type']} makes no PEFT model to save. Choose another type."
            )
        return tuned


def read_peft(given: Mapping[str, Any] | str) -> dict[str, Any]:
    """A PEFT configuration as plain values: its type, and what differs from the type's defaults.

    Args:
        given: Its fields, or the path of an ``adapter_config.json`` or of the folder of one.

    Returns:
        Field -> value, ``peft_type`` first.

    Raises:
        ConfigError: If the file cannot be read, or the type or a field is none that the installed PEFT has.
    """
    values = dict(_read_file(given) if isinstance(given, str) else given)
    name = str(values.pop("peft_type", "")).upper()
    types = {each.value: config for each, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if not name:
        raise ConfigError("`allocation.peft.peft_type` is missing. Give it a value, such as LORA.")
    if name not in types:
        raise ConfigError(
            f"`allocation.peft.peft_type` must be a type of the installed PEFT. Got {shorten(name)}. The closest one "
            f"is {get_close_matches(name, types, n=1, cutoff=0.0)[0]}."
        )
    known = {each.name: each for each in fields(types[name]) if each.init and each.name != "peft_type"}
    kept = {key: value for key, value in values.items() if key not in _OF_THE_FOLDER}
    if unknown := [key for key in kept if key not in known]:
        close = get_close_matches(str(unknown[0]), known, n=1, cutoff=0.0)[0]
        raise ConfigError(
            f"`allocation.peft.{unknown[0]}` is not a setting of PEFT's {name}. The closest one is "
            f"`allocation.peft.{close}`."
        )
    changed = {key: value for key, value in kept.items() if not _is_default(value, known[key])}
    return {"peft_type": name} | changed


def _read_file(given: str) -> Mapping[str, Any]:
    path = Path(given)
    if os.path.isdir(given):  # which a name that is too long does not raise from
        path /= _FILE
    values = read_json(path)
    if not isinstance(values, Mapping):
        raise ConfigError(f"{os.fspath(path)} must hold the fields of a PEFT configuration. Got {shorten(values)}.")
    return values


def _is_default(value: Any, field: Field[Any]) -> bool:
    if field.default_factory is not MISSING:
        return bool(value == field.default_factory())
    return bool(value == field.default)


def _complete(given: Mapping[str, Any], model: nn.Module, outline: ModelOutline) -> PeftConfig:
    """The configuration with the head to save, and modules to tune where it names none."""
    cls = PEFT_TYPE_TO_CONFIG_MAPPING[given["peft_type"]]
    known = {each.name for each in fields(cls)}
    values = {key: value for key, value in given.items() if key != "peft_type"}
    head = find_head(model)
    if head and "modules_to_save" not in known:
        raise ArgumentError(
            f"`allocation.peft` of the type {given['peft_type']} cannot train a head beside it. Choose another type."
        )
    if head:
        values["modules_to_save"] = [*dict.fromkeys([*(values.get("modules_to_save") or ()), *head])]
        _refuse_others_of_that_name(model, head)
    if "target_modules" in known and not values.get("target_modules"):
        values["target_modules"] = _linear_layers(model, outline)
        if "feedforward_modules" in known:
            values.setdefault("feedforward_modules", [])
    config: PeftConfig = cls(**values)
    if config.is_prompt_learning:
        raise ArgumentError(
            f"`allocation.peft` of the type {given['peft_type']} learns a prompt, which a vision model does not read. "
            "Choose another type."
        )
    return config


def _refuse_others_of_that_name(model: nn.Module, head: tuple[str, ...]) -> None:
    """PEFT saves every module whose name ends like one that is to be saved; the head must be the only one."""
    for name, _ in model.named_modules():
        if name not in head and any(name.endswith(each) for each in head):
            raise ArgumentError(
                f"PEFT would train `{name}` whole as well, because its name ends like the head's, `{head[0]}`. "
                "The method peft cannot tune this model; use another method."
            )


def _linear_layers(model: nn.Module, outline: ModelOutline) -> list[str]:
    owners = dict.fromkeys(site.module for site in outline.sites if site.kind == "matrix")
    return [name for name in owners if isinstance(model.get_submodule(name), nn.Linear)]
