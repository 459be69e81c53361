"""What every tuned place has in common: its parameters per adapter and site, activation, deltas."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import nn

from sensitune.errors import MergeError
from sensitune.sites import as_computed
from sensitune.tuner._hiding import HIDING, run_hidden
from sensitune.tuner._indices import SiteIndices, random_indices
from sensitune.tuner._merge import Original, check_mergeable, restore, write_changes
from sensitune.tuner._options import ModuleOptions
from sensitune.tuner._plan import SitePlan
from sensitune.tuner.kernels import SparsePattern

ROLES = ("down", "up", "down_bias", "up_bias", "sparse", "whole")


class SptLayer(BaseTunerLayer):
    """Mixin of the three kinds of tuned place: linear layers, convolutions and bare tensors.

    Parameters live in ``spt_<role>[adapter][slot]``, where a slot is the site's id without the module's name
    (``weight[q]``, ``bias``). PEFT finds, saves, freezes and deletes them through `adapter_layer_names`.
    """

    adapter_layer_names = tuple(f"spt_{role}" for role in ROLES)
    other_param_names = ("spt_indices", "plans", "options")

    plans: dict[str, dict[str, SitePlan]]
    options: dict[str, ModuleOptions]
    spt_indices: nn.ModuleDict
    training: bool
    keep_originals: bool = True
    """Whether a merge keeps what it overwrites; `merge_and_unload` has no use for it."""
    weight_forms: tuple[str, ...] = ("sparse", "whole")
    """Forms that change the parameter itself; a LoRA's too, where the layer is no plain product with its weight."""

    def init_containers(self) -> None:
        """Create the empty containers; to be called after ``nn.Module.__init__``."""
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ModuleDict())
        self.spt_indices = nn.ModuleDict()
        self.plans = {}
        self.options = {}
        self.merged_adapters = []
        self._disable_adapters = False
        self._originals: dict[str, list[Original]] = {}
        self._patterns: dict[tuple[str, ...], SparsePattern] = {}

    def base_parameter(self, name: str) -> nn.Parameter:
        """The untouched parameter `name` (``weight``, ``bias``, ``gamma``, ...) of the module that is tuned."""
        base = self.get_base_layer()
        # The order in which Python looks an attribute up: FSDP1 puts its gathered tensors beside the parameters.
        parameter = vars(base).get(name, base._parameters.get(name))
        if parameter is None:  # never of a plan, which is checked first; torch asks for every property while it traces
            raise AttributeError(name)
        return cast("nn.Parameter", parameter)

    def shape_of_weight(self) -> torch.Size:
        """Shape of the base's weight, as the layer computes with it."""
        weight = as_computed(self.get_base_layer(), "weight")
        return (self.base_parameter("weight") if weight is None else weight).shape

    def base_is_hooked(self) -> bool:
        """Whether something watches the base layer's calls (accelerate's offloading among others)."""
        base = self.get_base_layer()
        return bool(base._forward_hooks or base._forward_pre_hooks or base._backward_hooks or hasattr(base, "_hf_hook"))

    def run_base(self, changed: Mapping[str, torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run the base layer with other values in the place of some of its parameters.

        An attribute of the instance hides a parameter of the same name, also where FSDP1 has put its gathered tensors
        (there, ``torch.func.functional_call`` is silently without effect). The attributes are those of a copy that
        shares everything else, so that other threads see the base as it is. Where somebody holds on to the base itself,
        a hook or a forward of its own, they are the base's for the length of the call, for one thread at a time.

        Args:
            changed: Parameter name -> the value to use in this call.
            *args: Arguments of the base layer.
            **kwargs: Keyword arguments of the base layer.

        Returns:
            The base layer's output.
        """
        base = self.get_base_layer()
        result: torch.Tensor
        if not changed:
            result = base(*args, **kwargs)
            return result
        with self.undisturbed():
            return run_hidden(base, changed, args, kwargs, copied=not self._is_held_on_to())

    def undisturbed(self) -> AbstractContextManager[Any]:
        """For reading the base's parameters and running it: no other thread hides them by other values meanwhile."""
        return HIDING if self._is_held_on_to() else nullcontext()

    def _is_held_on_to(self) -> bool:
        """Whether somebody holds the base itself, so that no copy can run in its place."""
        return self.base_is_hooked() or "forward" in vars(self.get_base_layer())

    def update_layer(
        self,
        adapter_name: str,
        plans: Mapping[str, SitePlan],
        indices: Mapping[str, torch.Tensor],
        options: ModuleOptions,
        *,
        trainable: bool,
    ) -> None:
        """Create one adapter's parameters for this layer.

        Args:
            adapter_name: The adapter.
            plans: What is done to each of the layer's sites, by slot.
            indices: Flat indices of the sparse entries, by slot, where they are known.
            options: Dropout, drop-path and initialisation.
            trainable: Whether the new parameters train; those of other adapters stay as they are.
        """
        self.plans[adapter_name] = dict(plans)
        self.options[adapter_name] = options
        for slot, plan in plans.items():
            for role, value in self._initial_values(plan, options).items():
                self._slots(role, adapter_name)[slot] = nn.Parameter(value)
            if plan.form == "sparse":
                if adapter_name not in self.spt_indices:
                    self.spt_indices[adapter_name] = SiteIndices()
                chosen = indices.get(slot)
                site_indices: Any = self.spt_indices[adapter_name]
                site_indices.set(slot, random_indices(plan.numel, plan.size) if chosen is None else chosen)
        self._patterns.clear()
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_requires_grad(adapter_name, trainable)

    def _initial_values(self, plan: SitePlan, options: ModuleOptions) -> dict[str, torch.Tensor]:
        """New values by role: the identity, or with ``init_weights=False`` small random numbers everywhere."""
        if plan.form == "whole":
            return {"whole": _zero_or_random(plan.shape, options)}
        if plan.form == "sparse":
            return {"sparse": _zero_or_random((plan.size,), options)}
        down = torch.empty(self._down_shape(plan))
        nn.init.kaiming_uniform_(down, a=math.sqrt(5))
        values = {"down": down, "up": _zero_or_random(self._up_shape(plan), options)}
        if plan.form == "adapter":
            values["down_bias"] = _zero_or_random((plan.size,), options)
            values["up_bias"] = _zero_or_random((plan.out_features,), options)
        return values

    def _down_shape(self, plan: SitePlan) -> tuple[int, ...]:
        width = plan.out_features if plan.form == "adapter" and not plan.reads_input else plan.in_features
        return (plan.size, width)

    def _up_shape(self, plan: SitePlan) -> tuple[int, ...]:
        return (plan.out_features, plan.size)

    def _slots(self, role: str, adapter_name: str) -> nn.ParameterDict:
        container: nn.ModuleDict = getattr(self, f"spt_{role}")
        if adapter_name not in container:
            container[adapter_name] = nn.ParameterDict()
        slots = container[adapter_name]
        assert isinstance(slots, nn.ParameterDict)
        return slots

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        plans = self.plans.get(adapter_name)
        if not plans:
            return
        base = self.base_parameter(next(iter(plans.values())).name)
        if base.is_meta:  # where accelerate runs a layer that it has offloaded
            device = device or getattr(getattr(self.get_base_layer(), "_hf_hook", None), "execution_device", None)
        for name in (*self.adapter_layer_names, "spt_indices"):
            container: nn.ModuleDict = getattr(self, name)
            if adapter_name not in container:
                continue
            module = container[adapter_name]
            tensors = [*module.parameters(), *module.buffers()]
            if not any(tensor.is_meta for tensor in tensors) and (device is not None or not base.is_meta):
                module.to(device or base.device, dtype=base.dtype if base.is_floating_point() else None)
        self._patterns.clear()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._patterns.clear()
        return super()._apply(fn, recurse)  # type: ignore[misc]  # the mixin stands before nn.Module

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._patterns.clear()
        super()._load_from_state_dict(*args, **kwargs)  # type: ignore[misc]  # the mixin stands before nn.Module

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter's parameters from the layer.

        Args:
            adapter_name: The adapter to remove.
        """
        self._patterns.clear()
        super().delete_adapter(adapter_name)

    def applied_adapters(self) -> list[str]:
        """The active adapters that touch this layer; none while adapters are disabled or merged."""
        if self.disable_adapters or self.merged:
            return []
        return [name for name in self.active_adapters if name in self.plans]

    def active_slots(self, *forms: str, adapters: Sequence[str] | None = None) -> Iterator[tuple[str, str, SitePlan]]:
        """``(adapter, slot, plan)`` of the sites of the given forms.

        Args:
            *forms: Forms of a plan.
            adapters: Whose; None asks which are applied now. A forward asks once: another thread may merge meanwhile.

        Yields:
            One site after the other.
        """
        for adapter in self.applied_adapters() if adapters is None else adapters:
            for slot, plan in self.plans[adapter].items():
                if plan.form in forms:
                    yield adapter, slot, plan

    def tuned(self, role: str, adapter: str, slot: str) -> nn.Parameter:
        """One trained parameter."""
        parameter: nn.Parameter = getattr(self, f"spt_{role}")[adapter][slot]
        return parameter

    def indices_of(self, adapter: str, slot: str) -> torch.Tensor:
        """Flat indices of a sparse site's entries, within the site, int64 ``[n]``."""
        site_indices: Any = self.spt_indices[adapter]
        indices: torch.Tensor = site_indices.get(slot)
        return indices

    def effective(self, name: str, adapters: Sequence[str] | None = None) -> torch.Tensor:
        """The parameter `name` with those deltas of the applied adapters added that change it, differentiably."""
        value: torch.Tensor = self.base_parameter(name)
        for adapter, slot, plan in self.active_slots(*self.weight_forms, adapters=adapters):
            if plan.name == name:
                value = value + self.delta(adapter, slot, value, running=True)
        return value

    def changed_parameters(self, adapters: Sequence[str]) -> dict[str, torch.Tensor]:
        """`effective` for every parameter that differs from the base's."""
        slots = self.active_slots(*self.weight_forms, adapters=adapters)
        return {name: self.effective(name, adapters) for name in sorted({plan.name for _, _, plan in slots})}

    def delta(self, adapter: str, slot: str, like: torch.Tensor, *, running: bool = False) -> torch.Tensor:
        """One site's change as a dense tensor of the whole parameter's shape.

        Args:
            adapter: The adapter.
            slot: The site's slot.
            like: The parameter, for its shape, dtype and device.
            running: Whether it is for a forward, in which dropout and drop-path apply.

        Returns:
            Zero outside the site; differentiable in the trained values.

        Raises:
            MergeError: If the site has an Adapter, which is not linear.
        """
        plan = self.plans[adapter][slot]
        if plan.form == "whole":
            change = self.tuned("whole", adapter, slot).to(like.dtype)
        elif plan.form == "sparse":
            flat = like.new_zeros(plan.numel)
            values = self.tuned("sparse", adapter, slot).to(like.dtype)
            change = flat.index_add(0, self.indices_of(adapter, slot), values).view(plan.shape)
        else:
            change = self.low_rank_delta(adapter, slot, running=running).to(like.dtype)
        if plan.rows is None:
            return change
        full = torch.zeros_like(like)
        return torch.slice_scatter(full, change, -1 if plan.transposed else 0, *plan.rows)

    def low_rank_delta(self, adapter: str, slot: str, *, running: bool = False) -> torch.Tensor:
        """``up · down`` of a LoRA as a tensor of the site's stored shape, computed in float32 at least."""
        plan = self.plans[adapter][slot]
        if plan.form == "adapter":
            raise MergeError(
                f"`{plan.parameter}` has an Adapter, which is not linear and cannot be merged. "
                'Use `structured="lora"` or keep the adapter folder.'
            )
        up, down = self.tuned("up", adapter, slot), self.tuned("down", adapter, slot)
        product = self._compose(*(self.options[adapter].thinned(up, down) if running and self.training else (up, down)))
        return product.t() if plan.transposed else product.reshape(plan.shape)

    def _compose(self, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        """The weight that `down` followed by `up` stands for; half precision on a CPU lacks the products."""
        wide = torch.promote_types(up.dtype, torch.float32)
        return up.to(wide) @ down.to(wide)

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """The change of ``weight`` by one adapter, dense, as PEFT's own layers offer it.

        Args:
            adapter: The adapter.

        Returns:
            A tensor of the weight's shape.
        """
        weight = self.base_parameter("weight")
        slots = [slot for slot, plan in self.plans[adapter].items() if plan.name == "weight"]
        return sum((self.delta(adapter, slot, weight) for slot in slots), torch.zeros_like(weight))

    def check_mergeable(self, adapter_names: list[str], *, safe_merge: bool) -> None:
        """Refuse a merge before any weight of the model changes.

        Args:
            adapter_names: The adapters about to be merged.
            safe_merge: Also compute the merged values and refuse those that are not finite.

        Raises:
            MergeError: If a site has an Adapter or is offloaded, or `safe_merge` finds a value that is not finite.
        """
        check_mergeable(self, adapter_names, safe_merge=safe_merge)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write the adapters' changes into the base parameters.

        Args:
            safe_merge: Check first that every merged value is finite.
            adapter_names: The adapters; None merges the active ones.

        Raises:
            MergeError: If a site has an Adapter, or `safe_merge` finds a value that is not finite; nothing was changed.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.plans]
        with self.undisturbed():
            self.check_mergeable(names, safe_merge=safe_merge)
            for adapter in names:
                self._originals[adapter] = write_changes(self, adapter, keep_originals=self.keep_originals)
                self.merged_adapters.append(adapter)

    def unmerge(self) -> None:
        """Take the merged changes out again, in reverse order: every base value is restored bit for bit."""
        with self.undisturbed():
            while self.merged_adapters:
                restore(self, self._originals.pop(self.merged_adapters.pop()))


def _zero_or_random(shape: tuple[int, ...], options: ModuleOptions) -> torch.Tensor:
    return torch.zeros(shape) if options.init_weights else torch.randn(shape) * 0.1
