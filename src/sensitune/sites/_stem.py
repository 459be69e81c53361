"""Which modules are the stem: what makes features of pixels and embeddings of tokens, and no part of the trunk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from sensitune.sites._wrapped import (
    is_timm_model,
    is_transformers_model,
    join,
    known_models,
    pretrained_cfg,
    unwrapped,
    weighted_children,
)

_CALLED = ("patch_embed", "stem", "embeddings")
_LAYERS = 12  # in a stem at most
_MOST = 1 / 3  # of the model's layers and of their parameters, for a stem of several layers


def find_stem(model: nn.Module, head: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of the modules at the model's ends: patch embedding or stem, token embeddings, language-model head.

    Args:
        model: Any module.
        head: Names of the modules that are its head, and so no stem.

    Returns:
        The names.
    """
    model = unwrapped(model)
    models = list(known_models(model)) or [("", model)]
    names = [join(prefix, name) for prefix, each in models for name in _stem_of(each)]
    return tuple(name for name in dict.fromkeys(names) if name not in head)


def _stem_of(model: nn.Module) -> list[str]:
    stems: list[str] = []
    if is_transformers_model(model):
        stems += _embedding_modules(model)
        for name, child in model.named_children():
            if is_timm_model(child):
                return [*stems, *(join(name, each) for each in _stem_of(child))]
    configured = pretrained_cfg(model).get("first_conv") or ()
    modules = dict(model.named_modules())
    first = [name for name in ((configured,) if isinstance(configured, str) else configured) if name in modules]
    if first:
        return [*(_around(name, modules) for name in first), *stems]
    return [*_narrowed(model, _shallowest(model)), *stems]


def _around(name: str, modules: dict[str, nn.Module]) -> str:
    """The widest module around the first convolution that is not more than a stem."""
    parts = name.split(".")
    around = (".".join(parts[:depth]) for depth in range(1, len(parts)))
    return next((each for each in around if _is_stem(modules[each], modules[""])), name)


def _shallowest(model: nn.Module) -> list[str]:
    for last in _CALLED:
        names = [name for name, _ in model.named_modules() if name.rpartition(".")[2] == last]
        if names:
            depth = min(name.count(".") for name in names)
            return [name for name in names if name.count(".") == depth]
    return []


def _narrowed(model: nn.Module, names: list[str]) -> Iterator[str]:
    """The modules, or where one holds a trunk too (a hybrid's convolutional part), its beginning."""
    for name in names:
        module = model.get_submodule(name)
        while not _is_stem(module, model) and (children := weighted_children(module)):
            name, module = join(name, children[0][0]), children[0][1]
        yield name


def _is_stem(module: nn.Module, model: nn.Module) -> bool:
    """Whether a module holds a handful of the model's layers; tables of embeddings are no layers."""
    own, every = _layer_sizes(module), _layer_sizes(model)
    few = len(own) <= min(_LAYERS, _MOST * len(every))
    return len(own) <= 1 or (few and sum(own) <= _MOST * sum(every))


def _layer_sizes(module: nn.Module) -> list[int]:
    weights = (each._parameters.get("weight") for each in module.modules() if not isinstance(each, nn.Embedding))
    return [weight.numel() for weight in weights if weight is not None and weight.dim() > 1]


def _embedding_modules(model: Any) -> list[str]:
    """A pretrained language model's token embeddings and output layer, whatever they are called."""
    found = []
    for getter in ("get_input_embeddings", "get_output_embeddings"):
        try:
            found.append(getattr(model, getter)())
        except (AttributeError, NotImplementedError, TypeError):  # vision models and custom heads have none
            continue
    modules = [module for module in found if isinstance(module, nn.Module)]
    return [name for name, module in model.named_modules() if any(module is each for each in modules)]
