"""Say of every parameter of a model whether it is ranked, always trained, the head, or frozen and why."""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from sensitune.errors import ArgumentError, ModelError
from sensitune.sites._computed import computed_weights
from sensitune.sites._geometry import is_conv1d
from sensitune.sites._head import find_head
from sensitune.sites._names import block_of, find_blocks, operation_name
from sensitune.sites._quantised import as_computed, quantised_kind, unknown_buffers, unknown_storage
from sensitune.sites._roles import clears_key_bias, is_position_embedding, is_token, parent_reads_weight
from sensitune.sites._shared import all_names, tied_places
from sensitune.sites._slices import Slices, fused_slices
from sensitune.sites._stem import find_stem
from sensitune.sites._types import Kind, ModelOutline, Site
from sensitune.sites._wrapped import unwrapped

_LOGGER = logging.getLogger(__name__)
_EXPECTED = ("stem", "position embedding", "excluded")


def find_sites(
    model: nn.Module,
    *,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    head: str | Sequence[str] | None = None,
) -> list[Site]:
    """Every place of `model` that the method ranks.

    Args:
        model: Any module; timm and transformers models are understood by role, others by layer type. Of what
            ``DataParallel``, ``DistributedDataParallel`` and ``torch.compile`` return, it is the model inside.
        include: Shell-style patterns of parameter names to rank although they are frozen by default (embeddings, stem).
        exclude: Shell-style patterns of parameter names or site ids to leave out of the ranking.
        head: Names of the modules that form the head; None finds them, see `find_head`.

    Returns:
        The sites in the order of ``model.named_parameters()``; q, k and v of a fused projection are sites of their own.

    Raises:
        ArgumentError: If a pattern matches nothing, or `head` is not the name of a module.
        ModelError: If nothing can be ranked, the head is in doubt, or the model already carries an adapter.
    """
    return list(outline_model(model, include=include, exclude=exclude, head=head).sites)


def outline_model(
    model: nn.Module,
    *,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    split_fused: bool = True,
    head: str | Sequence[str] | None = None,
) -> ModelOutline:
    """`find_sites` together with what is not ranked: the head, the tokens that always train, the frozen rest and why.

    Args:
        model: As in `find_sites`.
        include: As in `find_sites`.
        exclude: As in `find_sites`.
        split_fused: False takes a fused q, k, v projection as the one matrix it is stored as, as PEFT's LoRA does.
        head: As in `find_sites`.

    Returns:
        The outline. Parameters that are frozen for an unexpected reason (quantised, tied, computed) are also logged as
        warnings.

    Raises:
        ArgumentError: If a pattern matches nothing, or `head` is not the name of a module.
        ModelError: If nothing can be ranked, the head is in doubt, or the model already carries an adapter.
    """
    model = unwrapped(model)
    if any(hasattr(module, "peft_config") for module in model.modules()):
        raise ModelError(
            "The model already carries a PEFT adapter; sites are those of the plain backbone. "
            "Call `unload()` or `merge_and_unload()` first."
        )
    sorter = _Sorter(model, include or (), exclude or (), find_head(model, head), split_fused=split_fused)
    for name, parameter in model.named_parameters():
        sorter.sort(name, parameter)
    sorter.sort_packed()
    outline = sorter.outline()
    for name, reason in outline.frozen.items():
        if not reason.startswith(_EXPECTED):
            _LOGGER.warning("`%s` is not ranked: %s.", name, reason)
    if not outline.sites:
        raise ModelError(
            f"{type(model).__name__} has no parameter that can be ranked; every one is head, stem or frozen."
        )
    return outline


class _Patterns:
    """Patterns of parameter names that a caller gave for one option; each must be of use."""

    def __init__(self, option: str, patterns: Sequence[str]) -> None:
        self._option = option
        self._patterns = tuple(patterns)
        self._unused = set(patterns)

    def match(self, *names: str) -> bool:
        """Whether a pattern matches one of the names, which are those of one place."""
        hits = {each for each in self._patterns for name in names if name == each or fnmatch.fnmatchcase(name, each)}
        self._unused -= hits
        return bool(hits)

    def check_used(self) -> None:
        """Refuse a pattern that did nothing: it is a spelling mistake, or names the head or a quantised weight."""
        for pattern in self._patterns:
            if pattern in self._unused:
                raise ArgumentError(
                    f"`{self._option}` pattern '{pattern}' matches no parameter that can be ranked. "
                    "List the names, and what stays frozen and why, with `sensitune sites MODEL`."
                )


class _Sorter:
    """Sorts the parameters of a model by what the method does with them."""

    def __init__(
        self,
        model: nn.Module,
        include: Sequence[str],
        exclude: Sequence[str],
        head: tuple[str, ...],
        *,
        split_fused: bool,
    ) -> None:
        self._modules = dict(model.named_modules())
        self._blocks = find_blocks(model)
        self._head = head
        self._stem = find_stem(model, head)
        self._include = _Patterns("include", include)
        self._exclude = _Patterns("exclude", exclude)
        self._split_fused = split_fused
        self._names = all_names(model)
        self._tied = tied_places(model)
        self._computed = computed_weights(model)
        self._sites: list[Site] = []
        self._always_trained: dict[str, tuple[int, ...]] = {}
        self._frozen: dict[str, str] = {}
        self._head_params = 0
        self._backbone_params = 0

    def outline(self) -> ModelOutline:
        """What came of all parameters; refuses a pattern that matched none of them."""
        self._include.check_used()
        self._exclude.check_used()
        return ModelOutline(
            sites=tuple(self._sites),
            head=self._head,
            head_params=self._head_params,
            always_trained=self._always_trained,
            frozen=self._frozen,
            backbone_params=self._backbone_params,
        )

    def sort(self, name: str, parameter: torch.Tensor) -> None:
        """Put one parameter where it belongs, whatever of its names says so."""
        names = self._names[name]
        owner_name, _, own = name.rpartition(".")
        seen = as_computed(self._modules[owner_name], own)
        assert seen is not None
        if _within(names, self._head):
            self._head_params += seen.numel()
            return
        self._backbone_params += seen.numel()
        tied = self._tied.get(id(parameter), ())
        if self._exclude.match(*names):
            self._freeze(name, tied, "excluded by `exclude`")
        elif is_token(name) and not tied:
            self._always_trained[name] = tuple(parameter.shape)
        elif reason := self._frozen_reason(name, parameter, bound=bool(tied)):
            self._freeze(name, tied, reason)
        elif tied:
            self._freeze(name, tied, f"{' and '.join(f'`{each}`' for each in tied)} are one tied parameter")
        else:
            self._rank(name, seen)

    def sort_packed(self) -> None:
        """Weights that are no parameters stay frozen too, and are to be said."""
        for module_name, module in self._modules.items():
            for name, reason in unknown_buffers(module).items():
                self._frozen[f"{module_name}.{name}"] = reason

    def _freeze(self, name: str, tied: tuple[str, ...], reason: str) -> None:
        self._frozen |= dict.fromkeys((name, *tied), reason)

    def _frozen_reason(self, name: str, parameter: torch.Tensor, *, bound: bool) -> str | None:
        """Why a parameter stays frozen, if it does; one that is `bound` to stay so cannot be included."""
        names = self._names[name]
        module_name, _, own = name.rpartition(".")
        owner = self._modules[module_name]
        quantised = own == "weight" and quantised_kind(owner) is not None
        if not quantised and (reason := unknown_storage(owner, parameter)):
            return reason
        if quantised and parent_reads_weight(self._parent(module_name), module_name.rpartition(".")[2]):
            return f"stored in few bits by {type(owner).__name__} and read by its parent, which never calls the layer"
        computed = _within(names, self._computed)
        if computed:
            return self._computed[computed]
        if not bound and self._include.match(*names):
            return None
        if name.rpartition(".")[2] == "mask_token":
            return "stem: the mask token of pretraining"
        if any(is_position_embedding(each) for each in names):
            return "position embedding"
        stem = _within(names, self._stem)
        return f"stem: part of `{stem}`" if stem else None

    def _rank(self, name: str, parameter: torch.Tensor) -> None:
        """The parameter's sites: itself, or its slices."""
        module_name, _, own = name.rpartition(".")
        owner = self._modules[module_name]
        kind = self._kind(module_name, own, owner, parameter)
        transposed = kind == "matrix" and is_conv1d(owner)
        block, relative = block_of(module_name, self._blocks)
        operation = operation_name(relative, own, owner_is_leaf=not any(True for _ in owner.children()))
        whole = Site(
            id=name,
            parameter=name,
            shape=tuple(parameter.shape),
            transposed=transposed,
            kind=kind,
            block=block,
            operation=operation,
        )
        slices = self._slices(module_name, own, owner, parameter, transposed=transposed)
        for site in [_slice_of(whole, *one) for one in slices] if slices else [whole]:
            if self._exclude.match(site.id):
                self._frozen[site.id] = "excluded by `exclude`"
            elif site.operation == "k" and own == "bias" and clears_key_bias(self._parent(module_name)):
                self._frozen[site.id] = "set to zero by its parent in every forward"
            else:
                self._sites.append(site)

    def _parent(self, module_name: str) -> nn.Module:
        parent: nn.Module = self._modules[module_name.rpartition(".")[0]]
        return parent

    def _kind(self, module_name: str, own: str, owner: nn.Module, parameter: torch.Tensor) -> Kind:
        if parameter.dim() == 1:
            return "vector"
        parent_name, _, last = module_name.rpartition(".")
        if own != "weight" or (module_name and parent_reads_weight(self._modules[parent_name], last)):
            return "tensor"
        if isinstance(owner, nn.Linear) or is_conv1d(owner):
            return "matrix"
        if isinstance(owner, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and owner.groups == 1 and set(owner.kernel_size) == {1}:
            return "matrix"
        return "tensor"

    def _slices(
        self, module_name: str, own: str, owner: nn.Module, parameter: torch.Tensor, *, transposed: bool
    ) -> Slices | None:
        out_features = parameter.shape[-1 if transposed else 0] if parameter.dim() else 0
        if isinstance(owner, nn.MultiheadAttention) and own.startswith("in_proj_"):
            return fused_slices("in_proj_weight", owner.embed_dim, out_features, owner)
        is_linear = isinstance(owner, nn.Linear) or is_conv1d(owner)
        if not (self._split_fused and is_linear and own in {"weight", "bias"}):
            return None
        parent_name, _, last = module_name.rpartition(".")
        layer: Any = owner
        in_features = layer.in_features if isinstance(owner, nn.Linear) else layer.weight.shape[0]
        return fused_slices(last, in_features, out_features, self._modules[parent_name])


def _slice_of(site: Site, label: str, start: int, stop: int) -> Site:
    rest = site.shape[:-1] if site.transposed else site.shape[1:]
    shape = (*rest, stop - start) if site.transposed else (stop - start, *rest)
    return replace(site, id=f"{site.parameter}[{label}]", rows=(start, stop), shape=shape, operation=label)


def _within(names: Sequence[str], modules: Iterable[str]) -> str | None:
    """The first of the modules (or parameters) whose subtree holds a place of one of the names, or None."""
    holders = (each for each in modules for name in names if name == each or name.startswith(f"{each}."))
    return next(holders, None)
