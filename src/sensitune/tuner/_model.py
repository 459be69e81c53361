"""Put an SPT adapter into a model, and take it out again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.integrations import init_empty_weights
from peft.utils.other import get_pattern_key
from torch import nn

from sensitune.errors import AllocationMismatchError, ModelError
from sensitune.sites import parent_reads_weight
from sensitune.tuner._config import SptConfig
from sensitune.tuner._conv import SptConv
from sensitune.tuner._layer import ROLES, ModuleOptions, SptLayer
from sensitune.tuner._linear import SptLinear
from sensitune.tuner._plan import SitePlan
from sensitune.tuner._tensors import SptTensors, attach, detach, expose


class SptModel(BaseTuner):
    """A model with SPT adapters; made by ``peft.get_peft_model(model, SptConfig(...))``.

    Linear layers and convolutions that an adapter touches are wrapped; every other tuned parameter (norms, layer
    scales, class tokens, tables) is exposed on its owner, see `sensitune.tuner._tensors`.
    """

    prefix = "spt_"
    tuner_layer_cls = SptLayer
    target_module_mapping: Any = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    # -- putting in ---------------------------------------------------------------------------------------------------

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Create the adapter's layers; the model is left as it was when the plan does not fit it.

        Args:
            model: The model to tune.
            adapter_name: Name of the new adapter.
            autocast_adapter_dtype: Whether PEFT may keep the adapter in float32 over a half-precision base.
            low_cpu_mem_usage: Create the parameters on the meta device, to be filled by loading.
            state_dict: Ignored: the configuration says exactly which modules are tuned, and how.

        Raises:
            AllocationMismatchError: If the plan was made for another model.
            ModelError: If a module cannot be tuned as planned.
        """
        config = cast("SptConfig", self.peft_config[adapter_name])
        _check_plan(model, config.plans)
        super().inject_adapter(model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage, state_dict=None)
        # PEFT visits named modules only, so the root's own parameters (timm's class token) come last.
        root = {site: plan for site, plan in config.plans.items() if not plan.module}
        if root:
            with init_empty_weights() if low_cpu_mem_usage else nullcontext():
                self._tune_tensors(config, adapter_name, model, root, prefix="")

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict[str, Any]) -> Any:
        if peft_config.site_plan is not None:
            return peft_config
        return super()._prepare_adapter_config(peft_config, model_config)

    @staticmethod
    def _check_target_module_exists(peft_config: Any, key: str) -> Any:
        if peft_config.site_plan is None:
            return BaseTuner._check_target_module_exists(peft_config, key)
        return key in {plan["parameter"].rpartition(".")[0] for plan in peft_config.site_plan.values()}

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        base = target.get_base_layer() if isinstance(target, SptLayer) else target
        if isinstance(base, BaseTunerLayer) or hasattr(base, "base_layer"):
            raise ModelError(f"`{current_key}` already carries an adapter of another method; merge or unload it first.")
        if peft_config.site_plan is None:
            plans = {f"{current_key}.weight": _default_plan(peft_config, current_key, base)}
        else:
            plans = {site: plan for site, plan in peft_config.plans.items() if plan.module == current_key}
        wrapper = _wrapper_class(base, parent, target_name, plans)
        if wrapper is None:
            self._tune_tensors(peft_config, adapter_name, base, plans, prefix=f"{current_key}.")
            return
        layer = target if isinstance(target, SptLayer) else wrapper(base, adapter_name)
        self._update(layer, peft_config, adapter_name, plans, prefix=f"{current_key}.")
        if layer is not target:
            layer._active_adapter = self.active_adapters
            self._replace_module(parent, target_name, layer, target)

    def _tune_tensors(
        self, config: SptConfig, adapter_name: str, owner: nn.Module, plans: dict[str, SitePlan], *, prefix: str
    ) -> None:
        child = attach(owner, adapter_name)
        child._active_adapter = self.active_adapters
        self._update(child, config, adapter_name, plans, prefix=prefix)
        expose(owner)

    def _update(
        self, layer: SptLayer, config: SptConfig, adapter_name: str, plans: dict[str, SitePlan], *, prefix: str
    ) -> None:
        layer.update_layer(
            adapter_name,
            {site.removeprefix(prefix): plan for site, plan in plans.items()},
            {site.removeprefix(prefix): config.sparse_indices[site] for site in plans if site in config.sparse_indices},
            ModuleOptions(config.dropout, config.drop_path, config.init_weights),
            trainable=adapter_name in self.active_adapters and not config.inference_mode,
        )

    # -- looking at it ------------------------------------------------------------------------------------------------

    def _layers(self) -> Iterator[tuple[str, SptLayer]]:
        """Every tuned place with the name of the module that owns its parameters."""
        for name, module in self.model.named_modules():
            if isinstance(module, SptTensors):
                yield name.rpartition(".")[0], module
            elif isinstance(module, SptLayer):
                yield name, module

    def site_parameters(self, adapter: str = "default") -> dict[str, dict[str, nn.Parameter]]:
        """The trained parameters of one adapter, by site id and role.

        Args:
            adapter: Name of the adapter.

        Returns:
            Site id -> role -> parameter. Roles: ``down [rank, in]``, ``up [out, rank]``, ``down_bias``, ``up_bias``,
            ``sparse`` (deltas of the selected entries, in the order of the allocation's indices) and ``whole`` (the
            delta of a whole tensor). The head is not among them: it is in ``modules_to_save``.

        Raises:
            ModelError: If there is no such adapter.
        """
        if adapter not in self.peft_config:
            raise ModelError(f"There is no adapter '{adapter}'. The model has: {', '.join(self.peft_config)}.")
        found: dict[str, dict[str, nn.Parameter]] = {}
        for name, layer in self._layers():
            for slot in layer.plans.get(adapter, {}):
                roles = {role: getattr(layer, f"spt_{role}") for role in ROLES}
                found[f"{name}.{slot}".lstrip(".")] = {
                    role: container[adapter][slot]
                    for role, container in roles.items()
                    if adapter in container and slot in container[adapter]
                }
        return found

    # -- taking out ---------------------------------------------------------------------------------------------------

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Write the adapters into the base weights; `unmerge_adapter` restores them bit for bit.

        Args:
            adapter_names: The adapters; None merges the active ones.
            safe_merge: Check first, over the whole model, that every merged value is finite.

        Raises:
            MergeError: If a site has an Adapter, or `safe_merge` finds a value that is not finite; the model was not
                changed.
        """
        self._check_mergeable(adapter_names, safe_merge=safe_merge)
        super().merge_adapter(adapter_names=adapter_names, safe_merge=False)

    def _check_mergeable(self, adapter_names: list[str] | None, *, safe_merge: bool) -> None:
        for _, layer in self._layers():
            layer.check_mergeable(check_adapters_to_merge(layer, adapter_names), safe_merge=safe_merge)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:
        layers = list(self._layers())
        if merge:
            self._check_mergeable(adapter_names, safe_merge=safe_merge)
        for _, layer in layers:
            layer.keep_originals = False  # the adapter is about to be gone, so nothing could be unmerged
            if isinstance(layer, SptTensors):
                if merge:
                    layer.merge(adapter_names=adapter_names)
                detach(layer.get_base_layer())
        return super()._unload_and_optionally_merge(
            merge=merge, progressbar=progressbar, safe_merge=False, adapter_names=adapter_names
        )


def _check_plan(model: nn.Module, plans: dict[str, SitePlan]) -> None:
    """Refuse a plan that was made for another model, before anything is changed."""
    for site, plan in plans.items():
        module: nn.Module | None
        try:
            module = model.get_submodule(plan.module)
        except AttributeError:
            module = None
        owner = module.get_base_layer() if isinstance(module, SptLayer) else module
        parameter = None if owner is None else owner._parameters.get(plan.name)
        if parameter is None:
            raise AllocationMismatchError(
                f"The allocation was made for another model: `{plan.parameter}` is not a parameter of "
                f"{type(model).__name__}. Take the sensitivity of this model and allocate again."
            )
        fits = plan.rows is None or plan.rows[1] <= parameter.shape[-1 if plan.transposed else 0]
        if not fits or tuple(plan.of(parameter).shape) != plan.shape:
            raise AllocationMismatchError(
                f"The allocation was made for another model: site `{site}` has shape {list(plan.shape)}, but "
                f"`{plan.parameter}` of this {type(model).__name__} is {list(parameter.shape)}. "
                "Take the sensitivity of this model and allocate again."
            )


def _default_plan(config: SptConfig, name: str, module: nn.Module) -> SitePlan:
    """What a configuration without an allocation does to one target module's weight."""
    weight = module._parameters.get("weight")
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
    transposed = type(module).__name__ == "Conv1D"
    return SitePlan(f"{name}.weight", form, size, tuple(weight.shape), None, transposed)  # type: ignore[arg-type]


def _wrapper_class(
    module: nn.Module, parent: nn.Module, name: str, plans: dict[str, SitePlan]
) -> type[SptLinear | SptConv] | None:
    """The layer that wraps a module, or None where its parameters are exposed on the module itself."""
    structured = next((plan for plan in plans.values() if plan.form in {"lora", "adapter"}), None)
    weight = module._parameters.get("weight")
    if weight is not None and not weight.is_floating_point():
        raise ModelError(
            f"`{name}` is a {type(module).__name__} with {weight.dtype} weights; quantised layers are not supported. "
            "Load the model without quantisation."
        )
    if isinstance(parent, nn.Module) and parent_reads_weight(parent, name):
        if structured is None:
            return None
        raise ModelError(
            f"`{structured.parameter}` cannot get a LoRA or an Adapter: {type(parent).__name__} reads the weight "
            "itself and never calls the layer. Tune it sparsely, or leave it out with `exclude_modules`."
        )
    if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
        return SptLinear
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return SptConv
    if structured is not None:
        raise ModelError(
            f"`{structured.parameter}` cannot get a LoRA or an Adapter: {type(module).__name__} is neither a linear "
            "layer nor a convolution. Tune it sparsely with `r=0`, or leave it out of `target_modules`."
        )
    return None
