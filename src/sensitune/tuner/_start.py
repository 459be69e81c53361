"""Give a fresh adapter's LoRAs another start than random directions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from peft import PeftModel
from torch import nn

from sensitune.errors import AllocationMismatchError, ArgumentError, ModelError
from sensitune.tuner._model import SptModel


def initialize_down(model: nn.Module, directions: Mapping[str, torch.Tensor], *, adapter: str = "default") -> None:
    """Set the down projections of a new adapter, in place; its output does not change, as the up projections are zero.

    ::

        tuned = get_peft_model(model, SptConfig.from_allocation(allocation))
        initialize_down(tuned, lora_directions(sensitivity, allocation))

    Args:
        model: What ``peft.get_peft_model`` returned for an `SptConfig`.
        directions: Site id -> ``[rank, in]``, for every LoRA of the adapter, and no other site; from
            `sensitune.allocation.lora_directions`.
        adapter: Name of the adapter.

    Raises:
        ModelError: If the model has no such SPT adapter.
        ArgumentError: If the adapter has been trained already.
        AllocationMismatchError: If a site is missing, has no LoRA, or is of another shape; nothing was changed.
    """
    tuner = model.base_model if isinstance(model, PeftModel) else model
    if not isinstance(tuner, SptModel):
        raise ModelError(f"{type(model).__name__} has no SPT adapter. Call `get_peft_model` with an `SptConfig` first.")
    loras = {
        site: roles
        for site, roles in tuner.site_parameters(adapter).items()
        if "down" in roles and "down_bias" not in roles
    }
    for site in (*directions, *loras):
        _check_site(site, directions, loras)
    with torch.no_grad():
        for site, direction in directions.items():
            down = loras[site]["down"]
            down.copy_(direction.view(down.shape))


def _check_site(
    site: str, directions: Mapping[str, torch.Tensor], loras: Mapping[str, Mapping[str, nn.Parameter]]
) -> None:
    if site not in loras:
        raise AllocationMismatchError(
            f"`directions` names `{site}`, where the adapter has no LoRA. Take the directions for the allocation that "
            "the adapter was made from."
        )
    if site not in directions:
        raise AllocationMismatchError(
            f"`directions` lacks `{site}`, where the adapter has a LoRA. Take the directions for the allocation that "
            "the adapter was made from."
        )
    down = loras[site]["down"]
    # A 1×1 convolution's down projection has dimensions of size one behind [rank, in].
    if tuple(directions[site].shape) != (down.shape[0], down[0].numel()):
        raise AllocationMismatchError(
            f"The LoRA on `{site}` needs directions of shape {[down.shape[0], down[0].numel()]}. "
            f"Got {list(directions[site].shape)}."
        )
    if bool(loras[site]["up"].any()):
        raise ArgumentError(
            f"The LoRA on `{site}` does not start from zero: it was trained or loaded, and other directions would "
            "change what it does. Set the directions right after `get_peft_model`."
        )
