"""Put an SPT adapter into a model, and take it out again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, ModulesToSaveWrapper
from peft.utils.integrations import init_empty_weights
from torch import nn

from sensitune.errors import ModelError
from sensitune.sites import tied_places
from sensitune.tuner._calls import CallWatch
from sensitune.tuner._checks import adapter_file, check_plan, check_tensors, model_to_tune, refuse_tied
from sensitune.tuner._combine import check_combination, combine_copies, combine_layer, combined_config
from sensitune.tuner._config import SptConfig
from sensitune.tuner._layer import ROLES, SptLayer
from sensitune.tuner._linear import refuse_mixed_batch
from sensitune.tuner._norms import hold_statistics, warn_of_held
from sensitune.tuner._notes import refresh, refreshing
from sensitune.tuner._options import ModuleOptions
from sensitune.tuner._plan import SitePlan
from sensitune.tuner._stored_bytes import keep_stored_bytes, release_stored_bytes
from sensitune.tuner._swap import other_names, swap, wrap_everywhere
from sensitune.tuner._targets import default_plan, is_offloaded, wrapper_class
from sensitune.tuner._tensors import SptTensors, attach, detach, expose
from sensitune.tuner._whole_modules import exact_modules_to_save
from sensitune.tuner._withdraw import drop_idle_copies, forget_trained, remember_trained, withdraw


class SptModel(BaseTuner):
    """A model with SPT adapters; made by ``peft.get_peft_model(model, SptConfig(...))``.

    Linear layers and convolutions that an adapter touches are wrapped; every other tuned parameter (norms, layer
    scales, class tokens, tables) is exposed on its owner, see `sensitune.tuner._tensors`.
    """

    prefix = "spt_"
    tuner_layer_cls = SptLayer
    target_module_mapping: Any = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    _watch: CallWatch | None = None
    _tied: dict[int, tuple[str, ...]]

    def __init__(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        model = model_to_tune(model)
        # PEFT writes a new adapter's configuration over one of that name that another method has in the model.
        configs = vars(model).get("peft_config")
        before = dict(configs or {})
        try:
            super().__init__(model, *args, **kwargs)
        except Exception:
            if configs is not None:
                configs.clear()
                configs.update(before)
                vars(model)["peft_config"] = configs
            raise

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
        self._tied = tied_places(model)
        check_plan(model, config.plans, self._tied)
        keep_stored_bytes(model)
        remember_trained(model, adapter_name)
        config.base_description = config.base_description or _describe(model)
        try:
            with exact_modules_to_save(model, config, adapter_name, self.active_adapters):
                super().inject_adapter(model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage, state_dict=None)
            wrap_everywhere(model)
            # PEFT visits named modules only, so the root's own parameters (timm's class token) come last.
            root = {site: plan for site, plan in config.plans.items() if not plan.module}
            if root:
                with init_empty_weights() if low_cpu_mem_usage else nullcontext():
                    self._tune_tensors(config, adapter_name, model, root, prefix="")
        except Exception:
            withdraw(model, adapter_name)
            raise
        if not config.inference_mode:
            warn_of_held(hold_statistics(model))
        refresh(model)
        if config.check_calls:
            self._watch = self._watch or CallWatch()
            self._watch.arm(model)

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
            plans = {f"{current_key}.weight": default_plan(peft_config, current_key, base)}
            refuse_tied(f"{current_key}.weight", cast("torch.Tensor", base._parameters["weight"]), self._tied)
        else:
            plans = {site: plan for site, plan in peft_config.plans.items() if plan.module == current_key}
        wrapper = wrapper_class(base, parent, target_name, plans)
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

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> Any:
        """Check an adapter's tensors before PEFT, from 0.21 on, loads any of them."""
        check_tensors(model, adapter_name, state_dict, path=config.weights_file)
        tensors = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        for other, first in other_names(model).items():  # else PEFT warns that they were missing
            known = [name for name in tensors if name.startswith(f"{first}.")]
            tensors |= {name.replace(first, other, 1): tensors[name] for name in known}
        return tensors

    def _load_from_state_dict(self, state_dict: dict[str, torch.Tensor], prefix: str, *args: Any) -> None:
        """The same check where older PEFT loads; torch calls this before it copies anything into the modules inside."""
        if not hasattr(BaseTuner, "_remap_adapter_state_dict_for_load"):
            found = adapter_file(state_dict, prefix)
            if found and found[0] in self.peft_config:
                check_tensors(self.model, *found, path=cast("SptConfig", self.peft_config[found[0]]).weights_file)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def add_weighted_adapter(
        self, adapters: list[str], weights: list[float], adapter_name: str, combination_type: str = "linear"
    ) -> None:
        """Add an adapter that is the weighted sum of others: ``ΔW = Σ_i w_i ΔW_i``, exactly.

        Sparse sets unite, the ranks of LoRAs add up, whole deltas and the copies of ``modules_to_save`` are summed as
        differences from the base. The new adapter is an ordinary one: it can be trained, saved and merged.

        Args:
            adapters: The adapters to combine.
            weights: One weight for each; they need not sum to one.
            adapter_name: Name of the new adapter.
            combination_type: ``"linear"``, or its synonym ``"cat"`` (PEFT's LoRA knows both as different methods; the
                sum is exact here).

        Raises:
            ArgumentError: If a name, the number of weights or the combination type is not valid.
            MergeError: If one of the adapters has an Adapter module, which is not linear.
        """
        check_combination(list(self.peft_config), adapters, weights, adapter_name, combination_type)
        weight_of = dict(zip(adapters, weights, strict=True))
        combined = {name: combine_layer(layer, weight_of) for name, layer in self._layers()}
        sites = {f"{name}.{slot}".lstrip("."): site for name, found in combined.items() for slot, site in found.items()}
        configs = [cast("SptConfig", self.peft_config[adapter]) for adapter in adapters]
        self.peft_config[adapter_name] = combined_config(configs, sites)
        self.inject_adapter(self.model, adapter_name)
        self._cast_adapter_dtype(adapter_name)
        roles = self.site_parameters(adapter_name)
        with torch.no_grad():
            for site, content in sites.items():
                for role, value in content.values.items():
                    roles[site][role].copy_(value)
            for module in self.model.modules():
                if isinstance(module, ModulesToSaveWrapper):
                    combine_copies(module, weight_of, adapter_name)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """PEFT's place for what a forward needs; without it, PEFT would ignore a mixed batch's `adapter_names`."""
        refuse_mixed_batch(kwargs)
        yield

    def train(self, mode: bool = True) -> SptModel:
        """Training or evaluation mode; norms keep their running statistics in both, as an adapter does not hold them.

        Args:
            mode: True is training mode.

        Returns:
            The model itself.
        """
        again = mode and self.training  # as trainers do before every step
        super().train(mode)
        hold_statistics(self.model)
        if not again:
            refresh(self.model)
        return self

    set_adapter = refreshing(BaseTuner.set_adapter)
    enable_adapter_layers = refreshing(BaseTuner.enable_adapter_layers)
    disable_adapter_layers = refreshing(BaseTuner.disable_adapter_layers)
    delete_adapter = refreshing(BaseTuner.delete_adapter)
    unmerge_adapter = refreshing(BaseTuner.unmerge_adapter)

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
        refresh(self.model)

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
        if self._watch is not None:
            self._watch.disarm()
        tensors = [layer for _, layer in layers if isinstance(layer, SptTensors)]
        for _, layer in layers:
            layer.keep_originals = False  # the adapter is about to be gone, so nothing could be unmerged
        for child in tensors if merge else []:
            child.merge(adapter_names=adapter_names)
        drop_idle_copies(self.model)
        wrapped = [(layer, layer.get_base_layer()) for _, layer in layers if not isinstance(layer, SptTensors)]
        plain: Any = super()._unload_and_optionally_merge(
            merge=merge, progressbar=progressbar, safe_merge=False, adapter_names=adapter_names
        )
        swap(plain, wrapped)
        for child in tensors:
            detach(child.get_base_layer())
        forget_trained(self.model)
        release_stored_bytes(self.model)
        refresh(self.model)
        return plain

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """PEFT wants a weight in whatever it puts back, a head too, and moves what is new to where that weight is."""
        if isinstance(new_module, SptLayer) and not is_offloaded(child):
            super()._replace_module(parent, child_name, new_module, child)
        else:
            setattr(parent, child_name, new_module)


def _describe(model: nn.Module) -> str:
    """The model's class, and the checkpoint where timm recorded one."""
    source: Any = getattr(model, "pretrained_cfg", None) or {}
    known = [source[key] for key in ("architecture", "tag") if isinstance(source, dict) and source.get(key)]
    return f"{type(model).__name__} ({'.'.join(known)})" if known else type(model).__name__
