"""Walk a model once and say, for every parameter, whether it is ranked, always trained, the head, or frozen and why."""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from sensitune.errors import ArgumentError, ModelError
from sensitune.sites._geometry import is_conv1d
from sensitune.sites._names import block_of, find_blocks, operation_name
from sensitune.sites._roles import find_head, find_stem, is_position_embedding, is_token, parent_reads_weight
from sensitune.sites._slices import Slices, fused_slices
from sensitune.sites._types import Kind, ModelOutline, Site

_LOGGER = logging.getLogger(__name__)
_EXPECTED = ("stem", "position embedding", "excluded")


def find_sites(
    model: nn.Module, *, include: Sequence[str] | None = None, exclude: Sequence[str] | None = None
) -> list[Site]:
    """Every place of `model` that the method ranks.

    Args:
        model: Any module; timm and transformers models are understood by role, others by layer type.
        include: Shell-style patterns of parameter names to rank although they are frozen by default (embeddings, stem).
        exclude: Shell-style patterns of parameter names or site ids to leave out of the ranking.

    Returns:
        The sites in the order of ``model.named_parameters()``; q, k and v of a fused projection are sites of their own.

    Raises:
        ArgumentError: If a pattern matches nothing.
        ModelError: If nothing can be ranked, or the model already carries an adapter.
    """
    return list(outline_model(model, include=include, exclude=exclude).sites)


def outline_model(
    model: nn.Module,
    *,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    split_fused: bool = True,
) -> ModelOutline:
    """`find_sites` together with what is not ranked: the head, the tokens that always train, the frozen rest and why.

    Args:
        model: Any module.
        include: As in `find_sites`.
        exclude: As in `find_sites`.
        split_fused: False takes a fused q, k, v projection as the one matrix it is stored as, as PEFT's LoRA does.

    Returns:
        The outline. Parameters that are frozen for an unexpected reason (quantised, tied) are also logged as warnings.

    Raises:
        ArgumentError: If a pattern matches nothing.
        ModelError: If nothing can be ranked, or the model already carries an adapter.
    """
    if hasattr(model, "peft_config"):
        raise ModelError(
            "The model already carries a PEFT adapter; sites are those of the plain backbone. "
            "Call `unload()` or `merge_and_unload()` first."
        )
    walk = _Walk.start(model, tuple(include or ()), tuple(exclude or ()), split_fused=split_fused)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        walk.visit(name, parameter)
    walk.check_patterns()
    for name, reason in walk.frozen.items():
        if not reason.startswith(_EXPECTED):
            _LOGGER.warning("`%s` is not ranked: %s.", name, reason)
    if not walk.sites:
        raise ModelError(
            f"{type(model).__name__} has no parameter that can be ranked; every one is head, stem or frozen."
        )
    return ModelOutline(
        sites=tuple(walk.sites),
        head=walk.head,
        head_params=walk.head_params,
        always_trained=walk.always_trained,
        frozen=walk.frozen,
        backbone_params=walk.backbone_params,
    )


@dataclass
class _Walk:
    """The state of one walk over a model's parameters."""

    split_fused: bool
    modules: dict[str, nn.Module]
    blocks: dict[str, int]
    head: tuple[str, ...]
    stem: tuple[str, ...]
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    sites: list[Site]
    always_trained: dict[str, tuple[int, ...]]
    frozen: dict[str, str]
    seen: dict[int, str]
    matched: set[str]
    head_params: int = 0
    backbone_params: int = 0

    @classmethod
    def start(cls, model: nn.Module, include: tuple[str, ...], exclude: tuple[str, ...], *, split_fused: bool) -> _Walk:
        return cls(
            split_fused=split_fused,
            modules=dict(model.named_modules()),
            blocks=find_blocks(model),
            head=find_head(model),
            stem=find_stem(model),
            include=include,
            exclude=exclude,
            sites=[],
            always_trained={},
            frozen={},
            seen={},
            matched=set(),
        )

    def visit(self, name: str, parameter: torch.Tensor) -> None:
        """File one parameter under its role."""
        first = self.seen.setdefault(id(parameter), name)
        if first != name:
            self.frozen[name] = self.frozen.get(first) or f"tied to `{first}`, which stands for both"
            return
        if _within(name, self.head):
            self.head_params += parameter.numel()
            return
        self.backbone_params += parameter.numel()
        if self._matches(name, self.exclude):
            self.frozen[name] = "excluded by `exclude`"
        elif is_token(name):
            self.always_trained[name] = tuple(parameter.shape)
        else:
            reason = self._frozen_reason(name, parameter)
            if reason is None:
                self._rank(name, parameter)
            else:
                self.frozen[name] = reason

    def _frozen_reason(self, name: str, parameter: torch.Tensor) -> str | None:
        if not parameter.is_floating_point():
            owner = self.modules[name.rpartition(".")[0]]
            return f"stored as {parameter.dtype} by {type(owner).__name__}; quantised weights have no exact gradient"
        if self._matches(name, self.include):
            return None
        if name.rpartition(".")[2] == "mask_token":
            return "stem: the mask token of pretraining"
        if is_position_embedding(name):
            return "position embedding"
        stem = _within(name, self.stem)
        return f"stem: part of `{stem}`" if stem else None

    def _rank(self, name: str, parameter: torch.Tensor) -> None:
        module_name, _, own = name.rpartition(".")
        owner = self.modules[module_name]
        kind = self._kind(module_name, own, owner, parameter)
        transposed = kind == "matrix" and is_conv1d(owner)
        block = block_of(module_name, self.blocks)
        relative = module_name[len(block[0]) :].lstrip(".") if block else module_name
        operation = operation_name(relative, own, owner_is_leaf=not any(True for _ in owner.children()))
        slices = self._slices(module_name, own, owner, parameter, transposed=transposed)
        for label, start, stop in slices or ((None, 0, 0),):
            site = Site(
                id=f"{name}[{label}]" if label else name,
                parameter=name,
                rows=(start, stop) if label else None,
                kind=kind,
                block=block[1] if block else None,
                operation=label or operation,
                shape=_slice_shape(tuple(parameter.shape), stop - start if label else None, transposed=transposed),
                transposed=transposed,
            )
            if self._matches(site.id, self.exclude):
                self.frozen[site.id] = "excluded by `exclude`"
            else:
                self.sites.append(site)

    def _kind(self, module_name: str, own: str, owner: nn.Module, parameter: torch.Tensor) -> Kind:
        if parameter.dim() == 1:
            return "vector"
        parent_name, _, last = module_name.rpartition(".")
        if own != "weight" or (module_name and parent_reads_weight(self.modules[parent_name], last)):
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
            return fused_slices("in_proj_weight", out_features, owner)
        is_linear = isinstance(owner, nn.Linear) or is_conv1d(owner)
        if not (self.split_fused and is_linear and own in {"weight", "bias"}):
            return None
        parent_name, _, last = module_name.rpartition(".")
        return fused_slices(last, out_features, self.modules[parent_name])

    def _matches(self, name: str, patterns: tuple[str, ...]) -> bool:
        hits = {pattern for pattern in patterns if name == pattern or fnmatch.fnmatchcase(name, pattern)}
        self.matched |= hits
        return bool(hits)

    def check_patterns(self) -> None:
        """Refuse a pattern that did nothing: it is a spelling mistake, or names the head or a quantised weight."""
        for option, patterns in (("include", self.include), ("exclude", self.exclude)):
            for pattern in patterns:
                if pattern not in self.matched:
                    raise ArgumentError(
                        f"`{option}` pattern '{pattern}' matches no parameter that can be ranked. "
                        "List the names with `sensitune sites MODEL`."
                    )


def _slice_shape(shape: tuple[int, ...], size: int | None, *, transposed: bool) -> tuple[int, ...]:
    if size is None:
        return shape
    return (*shape[:-1], size) if transposed else (size, *shape[1:])


def _within(name: str, modules: tuple[str, ...]) -> str | None:
    """The module of the list whose subtree holds `name`, or None."""
    return next((module for module in modules if name == module or name.startswith(f"{module}.")), None)
