"""A linear combination of adapters as one adapter, exactly: ``ΔW = Σ_i w_i ΔW_i``.

Sparse sets unite, whole deltas add, and LoRAs are stacked: ``Σ_i w_i up_i down_i`` is one LoRA whose `down` matrices
stand on top of each other and whose weighted `up` matrices stand side by side. Where the adapters tune one site in
different ways, the combination tunes it in all of these ways; the additional ones get a slot of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from peft.utils import ModulesToSaveWrapper

from sensitune.errors import ArgumentError, MergeError
from sensitune.tuner._config import SptConfig
from sensitune.tuner._layer import SptLayer
from sensitune.tuner._plan import SitePlan


@dataclass(frozen=True)
class CombinedSite:
    """One site of a combination: what is done to it, and its values.

    Attributes:
        plan: As in a configuration.
        values: Trained tensor of each role.
        indices: Flat indices of the entries, int64 ``[n]``, of a sparse site; None of any other.
    """

    plan: SitePlan
    values: dict[str, torch.Tensor]
    indices: torch.Tensor | None = None


# A slot, with the weight of its adapter.
_Part = tuple[str, str, float]


def check_combination(
    known: Sequence[str], adapters: Sequence[str], weights: Sequence[float], name: str, combination_type: str
) -> None:
    """Refuse a combination that makes no sense.

    Args:
        known: The model's adapters.
        adapters: Those to combine.
        weights: One weight for each.
        name: Name of the combination.
        combination_type: How they are combined.

    Raises:
        ArgumentError: If a name, the number of weights or the combination type is not valid.
    """
    unknown = [adapter for adapter in adapters if adapter not in known]
    if unknown or not adapters:
        got = f"'{unknown[0]}'" if unknown else "none"
        raise ArgumentError(f"`adapters` must be among: {', '.join(known)}. Got {got}.")
    if len(weights) != len(adapters) or len(set(adapters)) != len(adapters):
        raise ArgumentError(
            f"`weights` must have one weight for each of the {len(set(adapters))} different adapters. "
            f"Got {len(weights)} for {len(adapters)}."
        )
    if name in known:
        raise ArgumentError(f"There is an adapter '{name}' already. Choose another `adapter_name`.")
    if combination_type not in {"linear", "cat"}:
        raise ArgumentError(f'`combination_type` must be "linear" or "cat". Got {combination_type!r}.')


def combined_config(configs: Sequence[SptConfig], sites: Mapping[str, CombinedSite]) -> SptConfig:
    """The configuration of a combination.

    Args:
        configs: Those of the adapters.
        sites: Site id -> what the combination does there.

    Returns:
        That of the first, with the combination's plan.
    """
    saved = sorted({name for config in configs for name in config.modules_to_save or ()})
    return configs[0].with_plans(
        {site: content.plan for site, content in sites.items()},
        {site: content.indices for site, content in sites.items() if content.indices is not None},
        modules_to_save=saved or None,
        rule="weighted",
        trainable_params=sum(value.numel() for content in sites.values() for value in content.values.values()),
        budget=None,
    )


def combine_layer(layer: SptLayer, weights: Mapping[str, float]) -> dict[str, CombinedSite]:
    """The weighted sum of several adapters' changes to one layer.

    Args:
        layer: The layer.
        weights: Adapter name -> weight.

    Returns:
        Slot -> what the combination does there.

    Raises:
        MergeError: If one of the sites has an Adapter, which is not linear.
    """
    combined: dict[str, CombinedSite] = {}
    for slot, forms in _by_slot_and_form(layer, weights).items():
        for form, parts in forms.items():
            own_slot = slot if slot not in combined else f"{slot}+{form}"
            combined[own_slot] = _COMBINE[form](layer, parts)
    return combined


def _by_slot_and_form(layer: SptLayer, weights: Mapping[str, float]) -> dict[str, dict[str, list[_Part]]]:
    """Site -> form -> the slots to be added; entries of a site that is also whole go into the whole."""
    found: dict[str, dict[str, list[_Part]]] = {}
    for adapter, weight in weights.items():
        for slot, plan in layer.plans.get(adapter, {}).items():
            if plan.form == "adapter":
                raise MergeError(
                    f"`{plan.parameter}` has an Adapter in '{adapter}', which is not linear and has no weighted sum. "
                    'Combine adapters of `structured="lora"`.'
                )
            forms = found.setdefault(slot.partition("+")[0], {})
            forms.setdefault(plan.form, []).append((adapter, slot, weight))
    for forms in found.values():
        if "whole" in forms:
            forms["whole"] += forms.pop("sparse", [])
    return found


def _add_whole(layer: SptLayer, parts: list[_Part]) -> CombinedSite:
    plan = _plan(layer, parts[0])
    total = layer.tuned("whole", parts[0][0], parts[0][1]).new_zeros(plan.numel)
    for adapter, slot, weight in parts:
        if _plan(layer, (adapter, slot, weight)).form == "whole":
            total += weight * layer.tuned("whole", adapter, slot).flatten()
        else:
            total.index_add_(0, layer.indices_of(adapter, slot), weight * layer.tuned("sparse", adapter, slot))
    return CombinedSite(plan, {"whole": total.view(plan.shape)})


def _unite_sparse(layer: SptLayer, parts: list[_Part]) -> CombinedSite:
    entries = torch.cat([layer.indices_of(adapter, slot) for adapter, slot, _ in parts])
    values = torch.cat([weight * layer.tuned("sparse", adapter, slot) for adapter, slot, weight in parts])
    united, position = entries.unique(return_inverse=True)
    summed = values.new_zeros(united.numel()).index_add_(0, position, values)
    return CombinedSite(replace(_plan(layer, parts[0]), size=united.numel()), {"sparse": summed}, united)


def _stack_lora(layer: SptLayer, parts: list[_Part]) -> CombinedSite:
    downs = [layer.tuned("down", adapter, slot) for adapter, slot, _ in parts]
    ups = [weight * layer.tuned("up", adapter, slot) for adapter, slot, weight in parts]
    # A grouped convolution splits the rank among its groups; `up` has the rank of one group as its width.
    groups = downs[0].shape[0] // ups[0].shape[1]
    stacked = torch.cat([down.reshape(groups, -1, *down.shape[1:]) for down in downs], dim=1).flatten(0, 1)
    return CombinedSite(
        replace(_plan(layer, parts[0]), size=stacked.shape[0]), {"down": stacked, "up": torch.cat(ups, dim=1)}
    )


def _plan(layer: SptLayer, part: _Part) -> SitePlan:
    return layer.plans[part[0]][part[1]]


_COMBINE = {"whole": _add_whole, "sparse": _unite_sparse, "lora": _stack_lora}


def combine_copies(wrapper: ModulesToSaveWrapper, weights: Mapping[str, float], combined: str) -> None:
    """Set a module's copy for a combination: the original plus the weighted differences of the others' copies.

    Args:
        wrapper: PEFT's wrapper of a module in ``modules_to_save``.
        weights: Adapter name -> weight.
        combined: The combination's name; a wrapper without a copy for it is left alone.
    """
    if combined not in wrapper.modules_to_save:
        return
    original = wrapper.original_module.state_dict()
    copies = [
        (weight, wrapper.modules_to_save[adapter].state_dict())
        for adapter, weight in weights.items()
        if adapter in wrapper.modules_to_save
    ]
    for name, target in wrapper.modules_to_save[combined].state_dict().items():
        if target.is_floating_point():
            base = original[name].to(target.dtype)
            target.copy_(base + sum(weight * (copy[name] - base) for weight, copy in copies))
