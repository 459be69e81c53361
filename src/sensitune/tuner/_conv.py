"""A tuned convolution: convolutional LoRA as in PEFT, sparse entries, whole or sparse bias."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sensitune.errors import ArgumentError
from sensitune.sites import is_plain_convolution
from sensitune.tuner._linear import refuse_mixed_batch, refuse_other_output
from sensitune.tuner._plan import SitePlan
from sensitune.tuner._wrapper import SptWrapper
from sensitune.tuner.kernels import drop_path

_CONVOLUTIONS = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}


class SptConv(SptWrapper):
    """Wraps a convolution. LoRA: a convolution to `rank` channels with the base's geometry, then a 1×1 one back.

    Of a class with a forward of its own (weight standardisation, padding), a LoRA changes the weight itself.
    """

    def __init__(self, base_layer: nn.Module, adapter_name: str) -> None:
        super().__init__(base_layer, adapter_name)
        self.weight_forms = ("sparse", "whole") if is_plain_convolution(base_layer) else ("sparse", "whole", "lora")
        self.in_features: int = base_layer.in_channels  # type: ignore[assignment]  # PEFT's name on every layer
        self.out_features: int = base_layer.out_channels  # type: ignore[assignment]

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Apply the convolution with all active adapters.

        Args:
            x: Input ``[batch, in channels, ...]``.
            *args: Passed to the base layer.
            **kwargs: Passed to the base layer.

        Returns:
            Output ``[batch, out channels, ...]``.
        """
        refuse_mixed_batch(kwargs)
        if self.disable_adapters and self.merged:
            self.unmerge()
        adapters = self.applied_adapters()  # asked once: another thread may merge or switch meanwhile
        base: Any = self.base_layer
        with self.undisturbed():
            changed = self.changed_parameters(adapters)
            if changed and type(base) in _CONVOLUTIONS and not self.base_is_hooked():
                y = self._convolve(x, changed.get("weight", base.weight), changed.get("bias", base.bias))
            else:
                y = self.run_base(changed, x, *args, **kwargs)
        forms = ("adapter",) if "lora" in self.weight_forms else ("lora", "adapter")
        for adapter, slot, plan in self.active_slots(*forms, adapters=adapters):
            y = y + self._module_output(x, y, adapter, slot, plan)
        return y

    def _module_output(self, x: torch.Tensor, y: torch.Tensor, adapter: str, slot: str, plan: SitePlan) -> torch.Tensor:
        options = self.options[adapter]
        down, up = self.tuned("down", adapter, slot), self.tuned("up", adapter, slot)
        if plan.form == "lora":
            hidden = self._convolve(F.dropout(x, options.dropout, self.training).to(down.dtype), down, None)
            out = self._pointwise(hidden, up, None, groups=self._groups)
        else:
            refuse_other_output(self.base_layer, y, 1, plan)
            read = F.dropout(y, options.dropout, self.training).to(down.dtype)
            hidden = F.gelu(self._pointwise(read, down, self.tuned("down_bias", adapter, slot), groups=1))
            out = self._pointwise(hidden, up, self.tuned("up_bias", adapter, slot), groups=1)
        return drop_path(out, options.drop_path if self.training else 0.0).to(y.dtype)

    @property
    def _groups(self) -> int:
        groups: int = self.base_layer.groups  # type: ignore[assignment]
        return groups

    def _down_shape(self, plan: SitePlan) -> tuple[int, ...]:
        if plan.form == "adapter":
            return (plan.size, plan.out_features)
        if plan.size % self._groups:
            raise ArgumentError(
                f"The rank of a LoRA on `{plan.parameter}` must be a multiple of the convolution's {self._groups} "
                f"groups. Got {plan.size}. Choose another `r` or `rank_pattern`, or tune it sparsely (`r=0`)."
            )
        return (plan.size, *plan.shape[1:])

    def _up_shape(self, plan: SitePlan) -> tuple[int, ...]:
        return (plan.out_features, plan.size // (1 if plan.form == "adapter" else self._groups))

    def _convolve(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The base's convolution, group by group, with another kernel ``[channels, in / groups, ...]``."""
        base: Any = self.base_layer
        padding: Any = base.padding
        if base.padding_mode != "zeros":
            x = F.pad(x, _sides(base), mode=base.padding_mode)
            padding = 0
        return self._function(x, weight, bias, base.stride, padding, base.dilation, base.groups)

    def _pointwise(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *, groups: int
    ) -> torch.Tensor:
        kernel = weight.view(*weight.shape, *(1 for _ in x.shape[2:]))
        return self._function(x, kernel, bias, groups=groups)

    def _function(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        convolve = next(function for kind, function in _CONVOLUTIONS.items() if isinstance(self.base_layer, kind))
        result: torch.Tensor = convolve(*args, **kwargs)
        return result

    def _compose(self, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        """``Σ_r up[o, r] · down[r, ...]`` within each group: again a convolution with the base's groups."""
        wide = torch.promote_types(up.dtype, torch.float32)
        groups = self._groups
        grouped_up = up.to(wide).reshape(groups, up.shape[0] // groups, -1)
        grouped_down = down.to(wide).reshape(groups, down.shape[0] // groups, -1)
        return torch.bmm(grouped_up, grouped_down)

    def __repr__(self) -> str:
        return "sensitune." + super().__repr__()


def _sides(base: Any) -> list[int]:
    """A convolution's padding as `F.pad` takes it: the last dimension first, before and after."""
    if base.padding == "same":
        totals = [step * (size - 1) for step, size in zip(base.dilation, base.kernel_size, strict=True)]
        return [side for total in reversed(totals) for side in (total // 2, total - total // 2)]
    sides = [0] * len(base.kernel_size) if base.padding == "valid" else base.padding
    return [side for side in reversed(sides) for _ in range(2)]
