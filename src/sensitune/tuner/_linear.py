"""A tuned linear layer: any mix of row-sliced LoRA or Adapter, sparse entries and whole or sparse bias slices."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sensitune.errors import ArgumentError
from sensitune.sites import is_conv1d
from sensitune.tuner._fused import LowRank, fused_linear
from sensitune.tuner._layer import SptLayer
from sensitune.tuner._pattern import SparsePattern
from sensitune.tuner._plan import SitePlan
from sensitune.tuner._sparse import add_slices, sparse_linear


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
        if self._is_fusable(x):
            y = self._fused(x)
        else:
            y = self._base_with_deltas(x, *args, **kwargs)
            parts = self._lora_parts(x, y.dtype)
            if parts:
                y = add_slices(y, parts)
        for adapter, slot, plan in self.active_slots("adapter"):
            y = self._apply_adapter(x, y, adapter, slot, plan)
        return y

    def _fused(self, x: torch.Tensor) -> torch.Tensor:
        """The fast way: one autograd node for the base, the sparse entries and the first adapter's LoRA slices."""
        low_rank = self._low_rank(x) if self._lora_reads_x() else None
        pattern = self._pattern()
        bias = self.effective("bias") if self._has_bias() else None
        y: torch.Tensor
        if pattern is None and low_rank is None:
            y = F.linear(x, self._matrix(), bias)
        else:
            weight = self.base_parameter("weight")
            values = None if pattern is None else pattern.entries(self._sparse_values())
            y = fused_linear(
                x, weight, bias, transposed=self.transposed, pattern=pattern, values=values, low_rank=low_rank
            )
        parts = [] if low_rank is not None else self._lora_parts(x, y.dtype)
        return add_slices(y, parts) if parts else y

    def _is_fusable(self, x: torch.Tensor) -> bool:
        """Whether everything is plain and of one full-precision dtype, and nobody is tracing."""
        weight = self.base_parameter("weight")
        return (
            x.dtype == weight.dtype
            and weight.dtype in {torch.float32, torch.float64}
            and not torch.compiler.is_compiling()
            and not torch.is_autocast_enabled(x.device.type)
            and weight.is_contiguous()
            and not _shared_between_processes(weight)
            and self._is_plain()
            and all(value.dtype == weight.dtype for value in self._factors_and_values())
        )

    def _factors_and_values(self) -> list[torch.Tensor]:
        return [
            self.tuned(role, adapter, slot)
            for adapter, slot, plan in self.active_slots("lora", "sparse")
            for role in (("down", "up") if plan.form == "lora" else ("sparse",))
        ]

    def _lora_reads_x(self) -> bool:
        """Whether the LoRA slices can share the base's node: one adapter's, on an input without dropout."""
        adapters = {adapter for adapter, _, _ in self.active_slots("lora")}
        return len(adapters) == 1 and not (self.training and self.options[next(iter(adapters))].dropout)

    def _low_rank(self, x: torch.Tensor) -> LowRank:
        entries = list(self.active_slots("lora"))
        probability = self.options[entries[0][0]].drop_path
        scale = None
        if self.training and probability:
            tokens = x.shape[:-1]
            scale = drop_path(x.new_ones(tokens[0], *(1 for _ in tokens[1:])), probability, training=True)
            scale = scale.expand(tokens).reshape(-1, 1)
        return LowRank(
            starts=tuple(plan.start for _, _, plan in entries),
            downs=tuple(self.tuned("down", adapter, slot) for adapter, slot, _ in entries),
            ups=tuple(self.tuned("up", adapter, slot) for adapter, slot, _ in entries),
            scale=scale,
        )

    def _has_bias(self) -> bool:
        return self.base_layer._parameters.get("bias") is not None

    def _matrix(self) -> torch.Tensor:
        weight = self.base_parameter("weight")
        return weight.t() if self.transposed else weight

    def _sparse_values(self) -> torch.Tensor:
        values: list[torch.Tensor] = [self.tuned("sparse", *entry[:2]) for entry in self._sparse_weight_slots()]
        return torch.cat(values) if len(values) > 1 else values[0]

    def _base_with_deltas(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The portable way to the base's output with sparse and whole deltas."""
        touched = {plan.name for _, _, plan in self.active_slots("sparse", "whole")}
        if not touched:
            result: torch.Tensor = self.base_layer(x, *args, **kwargs)
            return result
        if not self._is_plain():
            changed = {name: self.effective(name) for name in sorted(touched)}
            return self.run_base(changed, x, *args, **kwargs)
        bias = self.effective("bias") if self._has_bias() else None
        if "weight" not in touched:
            return F.linear(x, self._matrix(), bias)
        pattern = self._pattern()
        if pattern is None:  # a compiler is tracing the first call: positions cannot be worked out inside its graph
            weight = self.effective("weight")
            return F.linear(x, weight.t() if self.transposed else weight, bias)
        return sparse_linear(x, self._matrix(), bias, pattern.entries(self._sparse_values()), pattern)

    def _is_plain(self) -> bool:
        """Whether the base layer computes ``F.linear`` with a frozen weight and nothing else, so that we may do it.

        Hooks (accelerate's offloading among them), whole-tuned weights, unfrozen weights and subclasses with a forward
        of their own take the general way, which calls the layer itself.

        Returns:
            True if the fast way gives the same.
        """
        base = self.base_layer
        plain_class = self.transposed or type(base).forward is nn.Linear.forward
        hooked = base._forward_hooks or base._forward_pre_hooks or base._backward_hooks or hasattr(base, "_hf_hook")
        whole = any(plan.name == "weight" for _, _, plan in self.active_slots("whole"))
        return plain_class and not hooked and not whole and not self.base_parameter("weight").requires_grad

    def _sparse_weight_slots(self) -> list[tuple[str, str, SitePlan]]:
        return [entry for entry in self.active_slots("sparse") if entry[2].name == "weight"]

    def _pattern(self) -> SparsePattern | None:
        """Where the sparse entries of all applied adapters sit, worked out once for each set of adapters."""
        key = tuple(self.applied_adapters())
        if key in self._patterns:
            return self._patterns[key]
        slots = self._sparse_weight_slots()
        if not slots or torch.compiler.is_compiling():
            return None
        rows, columns = [], []
        for adapter, slot, plan in slots:
            first, second = torch.unravel_index(self.indices_of(adapter, slot), plan.shape)
            rows.append((second if self.transposed else first) + plan.start)
            columns.append(first if self.transposed else second)
        shape = (self.out_features, self.in_features)
        pattern = SparsePattern.build(torch.cat(rows), torch.cat(columns), shape, transposed=self.transposed)
        self._patterns[key] = pattern
        return pattern

    def _lora_parts(self, x: torch.Tensor, dtype: torch.dtype) -> list[tuple[int, torch.Tensor]]:
        """The outputs of all LoRA slices; those of one adapter share one dropout mask and one down product."""
        parts: list[tuple[int, torch.Tensor]] = []
        for adapter in self.applied_adapters():
            plans = [(slot, plan) for slot, plan in self.plans[adapter].items() if plan.form == "lora"]
            if not plans:
                continue
            downs: list[torch.Tensor] = [self.tuned("down", adapter, slot) for slot, _ in plans]
            down = torch.cat(downs) if len(downs) > 1 else downs[0]
            dropped = F.dropout(x, self.options[adapter].dropout, self.training)
            hidden = F.linear(_cast(dropped, down), down)
            for (slot, plan), part in zip(plans, hidden.split([plan.size for _, plan in plans], -1), strict=True):
                out = F.linear(part, self.tuned("up", adapter, slot))
                parts.append((plan.start, drop_path(out, self.options[adapter].drop_path, self.training).to(dtype)))
        return parts

    def _apply_adapter(self, x: torch.Tensor, y: torch.Tensor, adapter: str, slot: str, plan: SitePlan) -> torch.Tensor:
        options = self.options[adapter]
        down = self.tuned("down", adapter, slot)
        # The slice is copied before it is read: backward needs it as it was, and add_slices changes y in place.
        read = x if plan.reads_input else y.narrow(-1, plan.start, plan.out_features).clone()
        hidden = F.linear(
            _cast(F.dropout(read, options.dropout, self.training), down), down, self.tuned("down_bias", adapter, slot)
        )
        out = F.linear(F.gelu(hidden), self.tuned("up", adapter, slot), self.tuned("up_bias", adapter, slot))
        return add_slices(y, [(plan.start, drop_path(out, options.drop_path, self.training).to(y.dtype))])

    def __repr__(self) -> str:
        return "sensitune." + super().__repr__()


def _shared_between_processes(weight: torch.Tensor) -> bool:
    """Whether other processes may read the weight; the lock around the fast way's writing holds in this one only."""
    return weight.device.type == "cpu" and weight.is_shared()  # torch calls every CUDA tensor shared


def _cast(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`x` in the dtype of an adapter's weight, except under autocast, which chooses for itself."""
    return x if torch.is_autocast_enabled(x.device.type) else x.to(like.dtype)


def drop_path(x: torch.Tensor, probability: float, training: bool) -> torch.Tensor:
    """Drop whole samples of a module's output and scale the rest up (stochastic depth).

    Args:
        x: ``[batch, ...]``.
        probability: Share of the samples to drop.
        training: Nothing is dropped outside training.

    Returns:
        A tensor like `x`.
    """
    if not training or probability == 0.0:
        return x
    mask = x.new_empty(x.shape[:1] + (1,) * (x.dim() - 1)).bernoulli_(1.0 - probability)
    return x * mask.div_(1.0 - probability)


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
