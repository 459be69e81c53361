"""What a structured module costs."""

from __future__ import annotations

from typing import Literal, TypeAlias

from sensitune.sites import Site

StructuredType: TypeAlias = Literal["lora", "adapter"]


def module_params(site: Site, structured_type: StructuredType | None, rank: int) -> int:
    """Parameters of a structured module on one matrix: LoRA r·(in + out), Adapter 2·r·out + r + out.

    Args:
        site: A matrix site.
        structured_type: ``"lora"``, ``"adapter"``, or None (no module: 0).
        rank: Width r of the module.

    Returns:
        The number of trainable parameters of the module.
    """
    if structured_type == "lora":
        return rank * (site.in_features + site.out_features)
    if structured_type == "adapter":
        return 2 * rank * site.out_features + rank + site.out_features
    return 0
