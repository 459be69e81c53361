"""A tuned linear layer whose weight is not at hand: stored in few bits, or elsewhere until the layer runs (offloaded).

The layer runs as it is, and every change is added to its output: ``y = base(x) + Δb``, then
``y[rows] += S[rows, columns] · x[columns]``, LoRAs and Adapters. A merge would have to round the sum to the few bits
again, or would not reach what is elsewhere, so it is refused.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from sensitune.errors import MergeError
from sensitune.sites import quantised_kind
from sensitune.tuner._linear import SptLinear
from sensitune.tuner._plan import SitePlan
from sensitune.tuner.kernels import SparseValues, beside, cast_like, with_low_rank


class SptBeside(SptLinear):
    """Wraps a linear layer of a `sensitune.sites.quantised_kind`, or one that accelerate has offloaded."""

    def __init__(self, base_layer: Any, adapter_name: str) -> None:
        super().__init__(base_layer, adapter_name)
        self.weight_forms = ("sparse", "whole")

    @property
    def weight(self) -> torch.Tensor:
        """The base's, as stored: nobody can compute with it but the layer."""
        return self.base_parameter("weight")

    def _is_plain(self) -> bool:
        return True

    def _bias(self, adapters: list[str]) -> torch.Tensor | None:
        """The change of the bias: the base adds its own."""
        change = None
        for adapter, slot, plan in self.active_slots("sparse", "whole", adapters=adapters):
            if plan.name == "bias":
                like = self.tuned(plan.form, adapter, slot).new_empty(self.out_features)
                delta = self.delta(adapter, slot, like)
                change = delta if change is None else change + delta
        return change

    def _tuned(self, x: torch.Tensor, adapters: list[str], bias: torch.Tensor | None) -> torch.Tensor:
        base: torch.Tensor = self.base_layer(x)
        x = x.to(base.device)  # where accelerate has moved it to, if it has
        y = base if bias is None else base + bias.to(base.dtype)
        sparse = [entry for entry in self.active_slots("sparse", adapters=adapters) if entry[2].name == "weight"]
        pattern = self._pattern(sparse)
        if pattern is not None:
            values = SparseValues(pattern, pattern.entries(self._sparse_values(sparse)))
            y = y + beside(x, values).to(y.dtype)
        dense = [*self.active_slots("whole", adapters=adapters), *(sparse if pattern is None else [])]
        for adapter, slot, plan in dense:
            if plan.name == "weight":
                change = self.delta(adapter, slot, self._like(adapter, slot, plan))
                change = change.t() if self.transposed else change
                y = y + F.linear(cast_like(x, change), change).to(y.dtype)
        y = with_low_rank(y, x, self._low_rank(adapters))
        # Adapters are added in place, and somebody else may hold what the base returned.
        return y.clone() if y is base else y

    def _like(self, adapter: str, slot: str, plan: SitePlan) -> torch.Tensor:
        return self.tuned(plan.form, adapter, slot).new_empty(self.shape_of_weight())

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """The change of the dequantised weight by one adapter, dense, as PEFT's own layers offer it.

        Args:
            adapter: The adapter.

        Returns:
            A tensor ``[out, in]``.
        """
        slots = [(slot, plan) for slot, plan in self.plans[adapter].items() if plan.name == "weight"]
        roles = {"lora": "up", "adapter": "up"}
        total = torch.zeros(())
        for slot, plan in slots:
            like = self.tuned(roles.get(plan.form, plan.form), adapter, slot).new_zeros(self.shape_of_weight())
            total = total.to(like) + self.delta(adapter, slot, like)
        return total.expand(self.shape_of_weight())

    def linear(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor | None:
        """None: nobody computes with the stored weight in the layer's place."""
        return None

    def check_mergeable(self, adapter_names: list[str], *, safe_merge: bool) -> None:
        """Refuse to merge a change of the stored weight, before anything changes.

        Args:
            adapter_names: The adapters about to be merged.
            safe_merge: See `SptLayer.check_mergeable`.

        Raises:
            MergeError: If one of them changes the weight, or a parameter that is offloaded.
        """
        kind = quantised_kind(self.base_layer)
        for plan in (plan for adapter in adapter_names for plan in self.plans.get(adapter, {}).values()):
            if kind is not None and plan.name == "weight":
                raise MergeError(
                    f"`{plan.parameter}` is stored in few bits ({kind.label}): a merged weight would be rounded to "
                    "them again. Write the adapter as a plain LoRA with `sensitune.export_lora`; or save it, load "
                    "the base again, call `sensitune.dequantise(base)` and merge there."
                )
        super().check_mergeable(adapter_names, safe_merge=safe_merge)
