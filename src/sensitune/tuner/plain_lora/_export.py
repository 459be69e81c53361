"""A trained adapter as an adapter folder of PEFT's own LoRA, exactly or not at all."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from peft.utils import ModulesToSaveWrapper
from torch import nn

from sensitune._markdown import code
from sensitune.errors import ExportError, ModelError
from sensitune.tuner._adapter_card import adapter_card
from sensitune.tuner._card import ModelCard
from sensitune.tuner._config import SptConfig
from sensitune.tuner._layer import SptLayer
from sensitune.tuner._model import SptModel
from sensitune.tuner.plain_lora._factors import Factors, factors_of, why_not
from sensitune.tuner.plain_lora._folder import write_lora_folder
from sensitune.tuner.plain_lora._names import exact_pattern, exact_targets, taken_along

_MOST_NAMES = 4
_SHARED = "a layer that stands in several places, of which PEFT tunes one"


@dataclass(frozen=True)
class LoraExport:
    """What became of an adapter.

    Attributes:
        folder: The new adapter folder.
        ranks: Full name of each module -> the rank of its LoRA in the folder.
        lora_params: Scalars in the LoRAs of the folder.
        saved_modules: Modules that the folder holds whole, such as the head.
        dropped: Id of each site that was left out -> why no LoRA does the same; empty unless that was allowed.
    """

    folder: Path
    ranks: Mapping[str, int]
    lora_params: int
    saved_modules: tuple[str, ...]
    dropped: Mapping[str, str]


def export_lora(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    adapter: str = "default",
    uniform_rank: bool = False,
    allow_dropping: bool = False,
) -> LoraExport:
    """Write an SPT adapter as a plain LoRA that PEFT loads, and servers read, without Sensitune.

    The new adapter does what the old one does in evaluation, exactly: LoRAs on slices of a fused matrix become one of
    the summed rank, and single values in k columns or rows of a matrix a LoRA of rank k. Every LoRA has alpha = rank.
    The head, and whatever else PEFT saves whole, is carried over in `modules_to_save`. The model stays as it is.

    Args:
        model: A model with the adapter, from `peft.get_peft_model` or `PeftModel.from_pretrained`.
        folder: The adapter folder to write; an older plain LoRA is replaced.
        adapter: Name of the adapter.
        uniform_rank: Fill all LoRAs up with zeros to the highest rank, for servers that read no `rank_pattern`.
        allow_dropping: Leave out what no LoRA does, which changes what the adapter does; False refuses.

    Returns:
        What was written, and what was left out.

    Raises:
        ArgumentError: If there is something else than a plain LoRA in the folder.
        ModelError: If the model has no such SPT adapter.
        ExportError: If a site's change is no LoRA (an Adapter, a norm, a bias, a token, some convolutions), or nothing
            but those is tuned.
    """
    tuner = model.base_model if isinstance(model, PeftModel) else model
    if not isinstance(tuner, SptModel):
        raise ModelError(f"{type(model).__name__} has no SPT adapter. Load or make one first.")
    if adapter not in tuner.peft_config:
        raise ModelError(f"There is no adapter '{adapter}'. The model has: {', '.join(tuner.peft_config)}.")
    factors, dropped = _translate(tuner, adapter)
    if dropped and not allow_dropping:
        raise ExportError(_refusal(dropped))
    if not factors:
        raise ExportError(
            f"The adapter '{adapter}' changes no matrix, so there is no LoRA to write. Export an adapter that was "
            "trained on matrices, or use it as it is."
        )
    if uniform_rank:
        factors = _padded(factors)
    head = dict(_saved_whole(tuner, adapter))
    spt = tuner.peft_config[adapter]
    assert isinstance(spt, SptConfig)
    transposed = all(getattr(tuner.model.get_submodule(name), "transposed", False) for name in factors)
    config = _config(spt, factors, list(head), _plain_modules(tuner.model), transposed=transposed)
    write_lora_folder(
        folder,
        config,
        factors,
        head={f"{name}.{own}": value for name, state in head.items() for own, value in state.items()},
        card=_card(config, dropped),
    )
    return LoraExport(
        folder=Path(folder),
        ranks={name: down.shape[0] for name, (down, _) in factors.items()},
        lora_params=sum(down.numel() + up.numel() for down, up in factors.values()),
        saved_modules=tuple(head),
        dropped=dropped,
    )


def _card(config: LoraConfig, dropped: Mapping[str, str]) -> ModelCard:
    card = adapter_card(config)
    if not dropped:
        return replace(card, summary=f"{card.summary} It does exactly what the SPT adapter does that it was made from.")
    left_out = "\n".join(f"- {code(site)}: {reason}" for site, reason in dropped.items())
    summary = f"{card.summary} It was made from an SPT adapter, without what no LoRA does."
    return replace(card, summary=summary, sections={"What was left out": left_out, **card.sections})


def _translate(tuner: SptModel, adapter: str) -> tuple[dict[str, Factors], dict[str, str]]:
    """Module -> factors, and site -> why it has none."""
    factors, dropped = {}, {}
    places = Counter(id(module) for _, module in tuner.model.named_modules(remove_duplicate=False))
    for name, layer in tuner._layers():
        slots, parent = [], tuner.model.get_submodule(name.rpartition(".")[0])
        for slot, plan in layer.plans.get(adapter, {}).items():
            reason = _SHARED if places[id(layer)] > 1 else why_not(layer, plan, parent)
            if reason is None:
                slots.append(slot)
            else:
                dropped[f"{name}.{slot}".lstrip(".")] = reason
        found = factors_of(layer, adapter, slots) if slots else None
        if found is not None:
            factors[name] = found
    return factors, dropped


def _refusal(dropped: Mapping[str, str]) -> str:
    groups: dict[str, list[str]] = {}
    for site, reason in dropped.items():
        groups.setdefault(reason, []).append(site)
    said = "; ".join(f"{reason}: {_listed(sorted(sites, key=_depth))}" for reason, sites in groups.items())
    return (
        f"No LoRA does what the adapter does in {len(dropped)} places ({said}). Train with `allocate(..., "
        "servable=True)` (`--allocation.servable`), which never selects such places, or leave them out with "
        "`allow_dropping=True` (`--allow-dropping`)."
    )


def _depth(site: str) -> int:
    return site.count(".")


def _listed(sites: list[str]) -> str:
    shown = ", ".join(f"`{site}`" for site in sites[:_MOST_NAMES])
    more = len(sites) - _MOST_NAMES
    return f"{shown} and {more} more" if more > 0 else shown


def _padded(factors: Mapping[str, Factors]) -> dict[str, Factors]:
    """The same changes at the highest rank, filled up with zeros."""
    highest = max(down.shape[0] for down, _ in factors.values())
    return {name: (_grown(down, 0, highest), _grown(up, 1, highest)) for name, (down, up) in factors.items()}


def _grown(factor: torch.Tensor, dim: int, size: int) -> torch.Tensor:
    shape = list(factor.shape)
    shape[dim] = size - shape[dim]
    return torch.cat([factor, factor.new_zeros(shape)], dim=dim)


def _saved_whole(tuner: SptModel, adapter: str) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Module -> its tensors, of what PEFT trains and saves whole."""
    for name, module in tuner.model.named_modules():
        if isinstance(module, ModulesToSaveWrapper) and adapter in module.modules_to_save:
            yield name, dict(module.modules_to_save[adapter].state_dict())


def _plain_modules(model: nn.Module) -> set[str]:
    """Names of the modules of the model without its adapters."""
    tuned = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, SptLayer))
    names = (
        re.sub(r"\.(original_module|modules_to_save\.[^.]+)(?=\.|$)", "", name) for name, _ in model.named_modules()
    )
    return {name for name in names if name and not name.startswith(tuned)}


def _config(
    spt: SptConfig, factors: Mapping[str, Factors], saved: list[str], modules: set[str], *, transposed: bool
) -> LoraConfig:
    ranks = {name: down.shape[0] for name, (down, _) in factors.items()}
    highest = max(ranks.values())
    if pair := taken_along(saved, modules):
        raise ExportError(
            f"PEFT cannot be told to save `{pair[0]}` alone: it takes `modules_to_save` as the ends of names, and "
            f"would take `{pair[1]}` for it too. Rename one of the two in the model, or use the adapter as it is."
        )
    return LoraConfig(
        base_model_name_or_path=spt.base_model_name_or_path,
        revision=spt.revision,
        task_type=spt.task_type,
        r=highest,
        lora_alpha=highest,
        target_modules=exact_targets(ranks, modules),
        rank_pattern=exact_pattern(ranks, highest),
        alpha_pattern=exact_pattern(ranks, highest),
        modules_to_save=saved or None,
        fan_in_fan_out=transposed,
    )
