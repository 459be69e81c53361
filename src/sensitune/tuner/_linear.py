"""A tuned linear layer: any mix of row-sliced LoRA or Adapter, sparse entries and whole or sparse bias slices."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sensitune.errors import ArgumentError, ModelError
from sensitune.sites import is_conv1d, is_plain_linear
from sensitune.tuner._plan import SitePlan
from sensitune.tuner._wrapper import SptWrapper
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


class SptLinear(SptWrapper):
    """Wraps an ``nn.Linear`` or a transformers ``Conv1D`` (whose weight is stored ``[in, out]``).

    ``y = (W + S) x + b + Δb``, then for each slice with a LoRA ``y[rows] += up(down(dropout(x)))``, then for each slice
    with an Adapter ``y[rows] += up(gelu(down(dropout(y[rows]))))`` (He et al., ICCV 2023, section 3.3).

    Of a class with a forward of its own (quantisation on the fly, groups, a router), a LoRA changes W itself.
    """

    def __init__(self, base_layer: nn.Module, adapter_name: str) -> None:
        super().__init__(base_layer, adapter_name)
        self.transposed = is_conv1d(base_layer)
        self._plain = is_plain_linear(base_layer)
        self.weight_forms = ("sparse", "whole") if self._plain else ("sparse", "whole", "lora")
        shape = self.shape_of_weight()
        self.in_features, self.out_features = shape if self.transposed else reversed(shape)

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
        adapters = self.applied_adapters()  # asked once: another thread may merge or switch meanwhile
        if not adapters:
            result: torch.Tensor = self.base_layer(x, *args, **kwargs)
            return result
        modules = list(self.active_slots("adapter", adapters=adapters))
        if self._is_plain():
            y = self._tuned(x, adapters, self._bias(adapters))
        else:
            with self.undisturbed():
                y = self.run_base(self.changed_parameters(adapters), x, *args, **kwargs)
            if self._plain:
                y = with_low_rank(y, x, self._low_rank(adapters))
            for _, _, plan in modules:
                refuse_other_output(self.base_layer, y, -1, plan)
            # Somebody else may hold what the base returned (a hook): it is added to, not changed.
            y = y.clone() if modules else y
        return self._apply_adapters(x, y, modules)

    def linear(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor | None:
        """The layer's output with another bias, as modules compute it that read the weight.

        Args:
            x: Input ``[..., in]``.
            bias: In the place of the layer's own ``[out]``.

        Returns:
            Output ``[..., out]``; None where the layer is more than a linear product.
        """
        if self.transposed or not self._is_plain():
            return None
        adapters = self.applied_adapters()
        modules = list(self.active_slots("adapter", adapters=adapters))
        return self._apply_adapters(x, self._tuned(x, adapters, bias), modules)

    def _is_plain(self) -> bool:
        return self._plain and not self.base_is_hooked()

    def _bias(self, adapters: list[str]) -> torch.Tensor | None:
        return None if self.base_layer._parameters.get("bias") is None else self.effective("bias", adapters)

    def _tuned(self, x: torch.Tensor, adapters: list[str], bias: torch.Tensor | None) -> torch.Tensor:
        """Everything but the Adapters, from the base's weights."""
        slots = [entry for entry in self.active_slots("sparse", adapters=adapters) if entry[2].name == "weight"]
        pattern = None if self._needs_dense_weight(adapters) else self._pattern(slots)
        if pattern is None:
            weight, sparse = self.effective("weight", adapters), None
        else:
            weight = self.base_parameter("weight")
            sparse = SparseValues(pattern, pattern.entries(self._sparse_values(slots)))
        return tuned_linear(x, LinearParts(weight, bias, self.transposed, sparse, self._low_rank(adapters)))

    def _needs_dense_weight(self, adapters: list[str]) -> bool:
        """Whether the weight is tuned as a whole, or trains itself, so that it needs a gradient of its own."""
        whole = any(plan.name == "weight" for _, _, plan in self.active_slots("whole", adapters=adapters))
        return whole or self.base_parameter("weight").requires_grad

    def _low_rank(self, adapters: list[str]) -> list[LowRank]:
        """The LoRA slices of every adapter that has any."""
        found = []
        for adapter in adapters:
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

    def _apply_adapters(
        self, x: torch.Tensor, y: torch.Tensor, modules: list[tuple[str, str, SitePlan]]
    ) -> torch.Tensor:
        for adapter, slot, plan in modules:
            y = self._apply_adapter(x, y, adapter, slot, plan)
        return y

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


def refuse_other_output(base: nn.Module, y: Any, dim: int, plan: SitePlan) -> None:
    """An Adapter reads and changes what the layer returns, which must be its features.

    Args:
        base: The layer.
        y: What it returned.
        dim: Where its features should be.
        plan: The Adapter's.

    Raises:
        ModelError: If it is something else, as a router's choice is.
    """
    width = y.shape[dim] if isinstance(y, torch.Tensor) and y.dim() > 1 else None
    if width is None or width < plan.start + plan.out_features:
        got = type(y).__name__ if width is None else f"shape {list(y.shape)}"
        raise ModelError(
            f"`{plan.parameter}` cannot have an Adapter: its {type(base).__name__} does not return the features of its "
            f'weight, but {got}. Use `structured="lora"`, or leave it out with `exclude`.'
        )
