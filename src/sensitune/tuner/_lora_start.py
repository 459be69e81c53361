"""Give a fresh adapter's LoRAs another start than random directions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from peft import PeftModel
from torch import nn

from sensitune.errors import AllocationMismatchError, ArgumentError, ModelError
from sensitune.tuner._model import SptModel


def apply_lora_start(model: nn.Module, start: Mapping[str, torch.Tensor], *, adapter: str = "default") -> None:
    """Set the down projections of a new adapter, in place; its output does not change, as the up projections are zero.

    ::

        tuned = get_peft_model(model, SptConfig.from_allocation(allocation))
        apply_lora_start(tuned, compute_lora_start(sensitivity, allocation))

    Args:
        model: What ``peft.get_peft_model`` returned for an `SptConfig`.
        start: Site id -> ``[rank, in]``, for every LoRA of the adapter, and no other site; from
            `sensitune.allocation.compute_lora_start`.
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
    for site in (*start, *loras):
        _check_site(site, start, loras)
    with torch.no_grad():
        for site, rows in start.items():
            down = loras[site]["down"]
            down.copy_(rows.view(down.shape))


def _check_site(site: str, start: Mapping[str, torch.Tensor], loras: Mapping[str, Mapping[str, nn.Parameter]]) -> None:
    if site not in loras:
        raise AllocationMismatchError(
            f"`start` names `{site}`, where the adapter has no LoRA. Compute the start for the allocation that the "
            "adapter was made from."
        )
    if site not in start:
        raise AllocationMismatchError(
            f"`start` lacks `{site}`, where the adapter has a LoRA. Compute the start for the allocation that the "
            "adapter was made from."
        )
    down = loras[site]["down"]
    # A 1×1 convolution's down projection has dimensions of size one behind [rank, in].
    if tuple(start[site].shape) != (down.shape[0], down[0].numel()):
        raise AllocationMismatchError(
            f"The LoRA on `{site}` needs a start of shape {[down.shape[0], down[0].numel()]}. "
            f"Got {list(start[site].shape)}."
        )
    if bool(loras[site]["up"].any()):
        raise ArgumentError(
            f"The LoRA on `{site}` does not start from zero: it was trained or loaded, and another start would change "
            "what it does. Apply the start right after `get_peft_model`."
        )
