"""A tuned linear layer: any mix of row-sliced LoRA or Adapter, sparse entries and whole or sparse bias slices."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sensitune.errors import ArgumentError
from sensitune.sites import is_conv1d
from sensitune.tuner._layer import SptLayer
from sensitune.tuner._plan import SitePlan
from sensitune.tuner.kernels import (
    LinearParts,
    LowRank,
    SparsePattern,
    SparseValues,
    add_slices,
    cast_like,
    drop_path,
    plain_autograd,
    tuned_linear,
    with_low_rank,
)


class SptLinear(SptLayer, nn.Module):
    """Wraps an ``nn.Linear`` or a transformers ``Conv1D`` (whose weight is stored ``[in, out]``).

    ``y = (W + S) x + b + Δb``, then for each slice with a LoRA ``y[rows] += up(down(dropout(x)))``, then for each slice
    with an Adapter ``y[rows] += up(gelu(down(dropout(y[rows]))))`` (He et al., ICCV 2023, section 3.3).
    """

    def __init__(self, base_layer: nn.Module, adapter_name: str) -> None:
        nn.Module.__init__(self)
        self.base_layer = base_layer
        self.init_containers()
        self.transposed = is_conv1d(base_layer)
        weight = self.base_parameter("weight")
        self.in_features, self.out_features = weight.shape if self.transposed else reversed(weight.shape)
        self._active_adapter = [adapter_name]

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Apply the layer with all active adapters.

        Args:
            x: Input ``[..., in]``.
            *args: Passed to the base layer.
            **kwargs: Passed to the base layer.

        Returns:
            Output ``[..., out]`` in the base layer's dtype.
        """
        refuse_mixed_batch(kwargs)
        if self.disable_adapters and self.merged:
            self.unmerge()
        if not self.applied_adapters():
            result: torch.Tensor = self.base_layer(x, *args, **kwargs)
            return result
        if self._is_plain():
            y = self._tuned(x)
        else:
            changed = {name: self.effective(name) for name in self._touched()}
            # Somebody else may hold what the base returned (a hook): it is added to, not changed.
            y = with_low_rank(self.run_base(changed, x, *args, **kwargs), x, self._low_rank())
        for adapter, slot, plan in self.active_slots("adapter"):
            y = self._apply_adapter(x, y, adapter, slot, plan)
        return y

    def _tuned(self, x: torch.Tensor) -> torch.Tensor:
        """Everything but the Adapters, from the base's weights."""
        bias = self.effective("bias") if self.base_layer._parameters.get("bias") is not None else None
        # Looked at once: another thread may merge or switch adapters meanwhile.
        slots = [entry for entry in self.active_slots("sparse") if entry[2].name == "weight"]
        pattern = self._pattern(slots)
        sparse = None if pattern is None else SparseValues(pattern, pattern.entries(self._sparse_values(slots)))
        # Without a pattern although there are sparse entries: a compiler traces the first call.
        weight = self.effective("weight") if pattern is None else self.base_parameter("weight")
        return tuned_linear(x, LinearParts(weight, bias, self.transposed, sparse, self._low_rank()))

    def _touched(self) -> list[str]:
        """The base's parameters with sparse or whole deltas."""
        return sorted({plan.name for _, _, plan in self.active_slots("sparse", "whole")})

    def _low_rank(self) -> list[LowRank]:
        """The LoRA slices of every applied adapter that has any."""
        found = []
        for adapter in self.applied_adapters():
            slots = [(slot, plan) for slot, plan in self.plans[adapter].items() if plan.form == "lora"]
            options = self.options[adapter]
            if slots:
                found.append(
                    LowRank(
                        starts=tuple(plan.start for _, plan in slots),
                        downs=tuple(self.tuned("down", adapter, slot) for slot, _ in slots),
                        ups=tuple(self.tuned("up", adapter, slot) for slot, _ in slots),
                        dropout=options.dropout if self.training else 0.0,
                        drop_path=options.drop_path if self.training else 0.0,
                    )
                )
        return found

    def _sparse_values(self, slots: list[tuple[str, str, SitePlan]]) -> torch.Tensor:
        values: list[torch.Tensor] = [self.tuned("sparse", adapter, slot) for adapter, slot, _ in slots]
        return torch.cat(values) if len(values) > 1 else values[0]

    def _is_plain(self) -> bool:
        """Whether the base layer computes ``F.linear`` with a frozen weight and nothing else, so that we may do it.

        Hooks (accelerate's offloading among them), whole-tuned weights, unfrozen weights and subclasses with a forward
        of their own take the general way, which calls the layer itself.

        Returns:
            True if the fast way gives the same.
        """
        base = self.base_layer
        plain_class = self.transposed or type(base).forward is nn.Linear.forward
        whole = any(plan.name == "weight" for _, _, plan in self.active_slots("whole"))
        return (
            plain_class and not self.base_is_hooked() and not whole and not self.base_parameter("weight").requires_grad
        )

    def _pattern(self, slots: list[tuple[str, str, SitePlan]]) -> SparsePattern | None:
        """Where the entries of sparse slots sit, worked out once for each set of adapters."""
        key = tuple(dict.fromkeys(adapter for adapter, _, _ in slots))
        if key in self._patterns:
            return self._patterns[key]
        # A compiler or tracer would record the working-out, a transform leave tensors of its own kind in the result.
        if not slots or not plain_autograd():
            return None
        # Worked out in the first forward but kept for all: tensors made in inference mode could not be trained with.
        with torch.inference_mode(False):
            pattern = self._patterns[key] = self._build_pattern(slots)
        return pattern

    def _build_pattern(self, slots: list[tuple[str, str, SitePlan]]) -> SparsePattern:
        rows, columns = [], []
        for adapter, slot, plan in slots:
            first, second = torch.unravel_index(self.indices_of(adapter, slot), plan.shape)
            rows.append((second if self.transposed else first) + plan.start)
            columns.append(first if self.transposed else second)
        shape = (self.out_features, self.in_features)
        return SparsePattern.build(torch.cat(rows), torch.cat(columns), shape, transposed=self.transposed)

    def _apply_adapter(self, x: torch.Tensor, y: torch.Tensor, adapter: str, slot: str, plan: SitePlan) -> torch.Tensor:
        options = self.options[adapter]
        down = self.tuned("down", adapter, slot)
        drop = options.drop_path if self.training else 0.0
        # The slice is copied before it is read: backward needs it as it was, and add_slices changes y in place.
        read = x if plan.reads_input else y.narrow(-1, plan.start, plan.out_features).clone()
        hidden = F.linear(
            cast_like(F.dropout(read, options.dropout, self.training), down),
            down,
            self.tuned("down_bias", adapter, slot),
        )
        out = F.linear(F.gelu(hidden), self.tuned("up", adapter, slot), self.tuned("up_bias", adapter, slot))
        return add_slices(y, [(plan.start, drop_path(out, drop).to(y.dtype))])

    def __repr__(self) -> str:
        return "sensitune." + super().__repr__()


def refuse_mixed_batch(kwargs: dict[str, Any]) -> None:
    """SPT does not mix adapters within one batch.

    Args:
        kwargs: The keyword arguments of a layer's forward.

    Raises:
        ArgumentError: If ``adapter_names`` is among them.
    """
    if kwargs.pop("adapter_names", None) is not None:
        raise ArgumentError(
            "SPT cannot apply different adapters within one batch (`adapter_names`). "
            "Call `set_adapter(name)` and run one batch per adapter."
        )
