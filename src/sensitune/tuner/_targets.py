"""How a module that an adapter names is tuned: by a layer around it, or by values exposed on the module itself."""

from __future__ import annotations

from peft.utils.other import get_pattern_key
from torch import nn

from sensitune.errors import ModelError
from sensitune.sites import (
    as_computed,
    is_conv1d,
    is_plain_linear,
    parent_reads_weight,
    quantised_kind,
    unknown_storage,
)
from sensitune.tuner._beside import SptBeside
from sensitune.tuner._config import SptConfig
from sensitune.tuner._conv import SptConv
from sensitune.tuner._linear import SptLinear
from sensitune.tuner._plan import SitePlan

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_WRAPPED = (nn.Linear, *_CONVOLUTIONS)


def is_offloaded(module: nn.Module) -> bool:
    """Whether accelerate loads a module's parameters for the length of each call; at other times they are not there."""
    return hasattr(module, "_hf_hook") and any(
        each is not None and each.is_meta for each in module._parameters.values()
    )


def default_plan(config: SptConfig, name: str, module: nn.Module) -> SitePlan:
    """What a configuration without an allocation does to one target module's weight."""
    weight = as_computed(module, "weight")
    if weight is None and getattr(module, "weight", None) is not None:
        raise ModelError(
            f"`{name}` cannot be tuned: its {type(module).__name__} computes the weight (weight norm, spectral norm, "
            "pruning or another parametrization). Make the result permanent, for example with "
            "`torch.nn.utils.parametrize.remove_parametrizations`, or leave it out of `target_modules`."
        )
    if weight is None:
        raise ModelError(
            f"`{name}` ({type(module).__name__}) has no weight that SPT could tune. "
            "Name linear layers, convolutions, norms or embeddings in `target_modules`."
        )
    rank = config.rank_pattern.get(get_pattern_key(list(config.rank_pattern), name), config.r)
    entries = config.sparse_pattern.get(get_pattern_key(list(config.sparse_pattern), name), config.num_sparse)
    matrix = weight.dim() >= 2 and not isinstance(module, nn.Embedding)
    form, size = (config.structured_type, rank) if matrix and rank else ("sparse", entries)
    if form == "sparse" and size >= weight.numel():
        form, size = "whole", weight.numel()
    transposed = is_conv1d(module)
    return SitePlan(
        parameter=f"{name}.weight",
        form=form,  # type: ignore[arg-type]  # one of the literals
        size=size,
        shape=tuple(weight.shape),
        transposed=transposed,
    )


def wrapper_class(
    module: nn.Module, parent: nn.Module, name: str, plans: dict[str, SitePlan]
) -> type[SptLinear | SptConv] | None:
    """The layer that wraps a module, or None where its parameters are exposed on the module itself."""
    structured = next((plan for plan in plans.values() if plan.form in {"lora", "adapter"}), None)
    weight = module._parameters.get("weight")
    if quantised_kind(module) is not None:
        if isinstance(parent, nn.Module) and parent_reads_weight(parent, name):
            raise ModelError(
                f"`{name}` cannot be tuned: {type(parent).__name__} reads its weight and never calls the layer, and "
                f"the weight is stored in few bits by {type(module).__name__}. Leave it out with `exclude_modules`."
            )
        return SptBeside
    if weight is not None and is_offloaded(module):
        if is_plain_linear(module):
            return SptBeside
        if structured is not None or isinstance(module, _WRAPPED):
            raise ModelError(
                f"`{name}` cannot be tuned where it is offloaded: {type(module).__name__} is no plain linear layer. "
                "Leave it out with `exclude_modules`, or load the model whole."
            )
    if weight is not None and (reason := unknown_storage(module, weight)):
        raise ModelError(f"`{name}` cannot be tuned: its weight is {reason}. Load the model without quantisation.")
    if isinstance(parent, nn.Module) and parent_reads_weight(parent, name):
        if structured is None:
            return None
        raise ModelError(
            f"`{structured.parameter}` cannot get a LoRA or an Adapter: {type(parent).__name__} reads the weight "
            "itself and never calls the layer. Tune it sparsely, or leave it out with `exclude_modules`."
        )
    if weight is not None and (isinstance(module, nn.Linear) or is_conv1d(module)):
        return SptLinear
    if weight is not None and isinstance(module, _CONVOLUTIONS):
        return SptConv
    if structured is not None:
        raise ModelError(
            f"`{structured.parameter}` cannot get a LoRA or an Adapter: {type(module).__name__} is neither a linear "
            "layer nor a convolution. Tune it sparsely with `r=0`, or leave it out of `target_modules`."
        )
    return None  # also where the layer computes its weight: then its bias is exposed
