"""Refuse what does not fit the model: a plan for another one, or a file that is damaged."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sensitune._schema import show_name
from sensitune.errors import AdapterFileError, AllocationMismatchError, ModelError
from sensitune.sites import as_computed, unwrapped
from sensitune.tuner._adapter_folder import complaint
from sensitune.tuner._layer import SptLayer
from sensitune.tuner._plan import SitePlan
from sensitune.tuner._swap import other_names
from sensitune.tuner._withdraw import withdraw

_LOGGER = logging.getLogger(__name__)
_PEFT_PREFIX = "base_model.model."
# The name of a tensor in an adapter's file. PEFT before 0.20 writes the tensors of the model's other adapters beside
# them, with the adapter's name in theirs, and loads none of these; so they are passed over.
_OWN = re.compile(r"\.spt_\w+\.[^.]+$")
# PEFT before 0.20 writes the tensors of the model's other adapters too, with their names.
_ANOTHERS = re.compile(r"\.spt_\w+\.[^.]+\.[^.]+$")
# The name of a tensor in a model, which always says the adapter; PEFT forbids dots in an adapter's name.
_KEY = re.compile(r"(?P<before>.*\.(spt_\w+|modules_to_save))\.(?P<adapter>[^.]+)\.(?P<slot>.+)")


def model_to_tune(model: nn.Module) -> nn.Module:
    """The model that gets the adapter: adapters are alike with and without torch's wrappers around it.

    Args:
        model: As given to ``get_peft_model``.

    Returns:
        The model inside; the model itself if there is no wrapper.

    Raises:
        ModelError: If it is inside DistributedDataParallel, or cannot be taken out of what is around it.
    """
    inside = unwrapped(model)
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise ModelError(
            "DistributedDataParallel has noted which parameters train. Give its `module` to `get_peft_model`, and wrap "
            "what that returns."
        )
    if inside is not model:
        wrapper = type(model).__name__
        _LOGGER.warning("The adapter goes into the model inside %s; wrap again what `get_peft_model` returns.", wrapper)
    return inside


def check_plan(model: nn.Module, plans: Mapping[str, SitePlan], tied: Mapping[int, tuple[str, ...]]) -> None:
    """Refuse a plan that was made for another model, before anything is changed.

    Args:
        model: The model to tune.
        plans: Site id -> plan.
        tied: From `sensitune.sites.tied_places`.

    Raises:
        AllocationMismatchError: If a parameter is missing or has another shape.
        ModelError: If a parameter is tied to one of another module, which would not see the tuned values.
    """
    for site, plan in plans.items():
        module: nn.Module | None
        try:
            module = model.get_submodule(plan.module)
        except AttributeError:
            module = None
        owner = module.get_base_layer() if isinstance(module, SptLayer) else module
        parameter = None if owner is None else owner._parameters.get(plan.name)
        if owner is None or parameter is None:
            raise AllocationMismatchError(
                f"The allocation was made for another model: `{plan.parameter}` is not a parameter of "
                f"{type(model).__name__}. Take the sensitivity of this model and allocate again."
            )
        seen = as_computed(owner, plan.name)
        assert seen is not None
        if not plan.fits(seen):
            raise AllocationMismatchError(
                f"The allocation was made for another model: site `{site}` has shape {list(plan.shape)}, but "
                f"`{plan.parameter}` of this {type(model).__name__} is {list(seen.shape)}. "
                "Take the sensitivity of this model and allocate again."
            )
        refuse_tied(plan.parameter, parameter, tied)


def refuse_tied(name: str, parameter: torch.Tensor, tied: Mapping[int, tuple[str, ...]]) -> None:
    """Refuse to tune a parameter that other places hold too.

    Args:
        name: Its name.
        parameter: The parameter.
        tied: From `sensitune.sites.tied_places`.

    Raises:
        ModelError: If it is tied to one of another module, which would not see the tuned values.
    """
    others = [other for other in tied.get(id(parameter), ()) if other.replace(".base_layer.", ".") != name]
    if others:
        raise ModelError(
            f"`{name}` is tied to `{others[0]}`, which would keep the base's values until a merge changed both. Leave "
            "it frozen, or untie the two."
        )


def check_tensors(
    model: nn.Module, adapter: str, tensors: Mapping[str, torch.Tensor], *, path: Path | None = None
) -> None:
    """Refuse an adapter's tensors if one is missing, of another shape or type, not finite, or unknown.

    A refused adapter is taken out again: the model is left as it was.

    Args:
        model: The model with the adapter's layers in place.
        adapter: The adapter.
        tensors: What its file holds, by name without the adapter's name.
        path: The file, where it is known.

    Raises:
        AdapterFileError: If the file is not the one that belongs to the configuration.
    """
    try:
        _check_tensors(model, adapter, tensors, file="The adapter file" if path is None else f"`{path}`")
    except AdapterFileError:
        withdraw(model, adapter)
        raise


def _check_tensors(model: nn.Module, adapter: str, tensors: Mapping[str, torch.Tensor], *, file: str) -> None:
    given = {_in_file(name): tensor for name, tensor in tensors.items() if _OWN.search(name)}
    # PEFT before 0.21 writes a layer that several modules share under each of its names.
    again = tuple(_in_file(f"{name}.") for name in other_names(model))
    given = {name: tensor for name, tensor in given.items() if not name.startswith(again)}
    for own_name, expected, plan in _expected(model, adapter):
        name = _in_file(own_name)
        tensor = given.pop(name, None)
        if tensor is None:
            raise AdapterFileError(
                f"{file} is incomplete: it lacks `{name}`, which its configuration promises. "
                "Save the adapter again, or restore the file."
            )
        if tensor.shape != expected.shape:
            raise AdapterFileError(
                f"{file} does not fit its configuration: `{name}` must be {list(expected.shape)}. "
                f"Got {list(tensor.shape)}. Restore the file, or load it on the model it was made for."
            )
        if found := complaint(tensor, expected):
            raise AdapterFileError(f"{file} is damaged: `{name}` {found}. Restore the file.")
        if not expected.is_floating_point():
            _check_indices(name, tensor, plan, file=file)
    for name, tensor in tensors.items():
        if _OWN.search(name) or _ANOTHERS.search(name):
            continue
        if (own := _copied(model, name)) is not None and own.shape != tensor.shape:
            raise AdapterFileError(
                f"{file} does not fit the model: `{show_name(name)}` must be {list(own.shape)}. "
                f"Got {list(tensor.shape)}."
            )
        if own is None and name.endswith(".num_batches_tracked"):  # a batch norm's count, as PEFT 0.18 names it
            continue
        if found := complaint(tensor, own):
            raise AdapterFileError(f"{file} is damaged: `{show_name(name)}` {found}. Restore the file.")
    if given:
        raise AdapterFileError(
            f"{file} does not fit its configuration: it holds `{show_name(next(iter(given)))}`, which the "
            "configuration does not know. Restore the file or the configuration that was saved with it."
        )


def _in_file(name: str) -> str:
    """A tensor's name as files have it, whatever part of PEFT's wrapping the name was seen through."""
    return _PEFT_PREFIX + name.removeprefix(_PEFT_PREFIX)


def adapter_file(state_dict: Mapping[str, torch.Tensor], prefix: str) -> tuple[str, dict[str, torch.Tensor]] | None:
    """Recognise an adapter file in what a model is asked to load: one adapter's tensors, and no weight of the base.

    Args:
        state_dict: As given to ``load_state_dict``, with the adapter's name in every key.
        prefix: Name of the tuner in the outermost module, with its dot.

    Returns:
        The adapter, and its tensors by name without the adapter's name; None for any other state dict.
    """
    parts = [_KEY.fullmatch(name) for name in state_dict if name.startswith(prefix)]
    adapters = {part and part["adapter"] for part in parts}
    if len(adapters) != 1 or None in adapters:
        return None
    tensors = {f"{part['before']}.{part['slot']}": state_dict[part.string] for part in parts if part}
    return str(adapters.pop()), tensors


def _expected(model: nn.Module, adapter: str) -> Iterator[tuple[str, torch.Tensor, SitePlan]]:
    """``(name in the file, tensor in the model, plan)`` of everything an adapter saves."""
    for name, layer in model.named_modules():
        if not isinstance(layer, SptLayer) or adapter not in layer.plans:
            continue
        for container_name in (*layer.adapter_layer_names, "spt_indices"):
            container: Any = getattr(layer, container_name)
            if adapter not in container:
                continue
            held = {**dict(container[adapter].named_parameters()), **dict(container[adapter].named_buffers())}
            for slot, tensor in held.items():
                yield f"{name}.{container_name}.{slot}".lstrip("."), tensor, layer.plans[adapter][slot]


def _copied(model: nn.Module, name: str) -> torch.Tensor | None:
    """The tensor of a module that is saved whole."""
    found = model.state_dict(keep_vars=True).get(name)
    return found if isinstance(found, torch.Tensor) else None


def _check_indices(name: str, indices: torch.Tensor, plan: SitePlan, *, file: str) -> None:
    wide = indices.long()
    outside = wide[(wide < 0) | (wide >= plan.numel)]
    if outside.numel():
        raise AdapterFileError(
            f"{file} is damaged: `{name}` holds the index {int(outside[0])}, outside the site's "
            f"{plan.numel} scalars. Restore the file."
        )
    if wide.numel() > 1 and not bool((wide[1:] > wide[:-1]).all()):
        raise AdapterFileError(
            f"{file} is damaged: `{name}` holds an index twice, or not in ascending order. Restore the file."
        )
