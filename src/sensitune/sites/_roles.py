"""Which parameters are the head, the stem, the tokens and the position embeddings: by role, never by position."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

_TOKENS = frozenset({
    "cls_token", "class_token", "class_embedding", "dist_token", "distillation_token",
    "reg_token", "register_token", "register_tokens",
})  # fmt: skip
_POSITIONS = frozenset({
    "pos_embed", "pos_embedding", "pos_emb", "pos_embed_win", "position_embedding", "position_embeddings",
    "positional_embedding", "absolute_pos_embed", "absolute_position_embeddings", "embed_positions", "wpe",
})  # fmt: skip
_STEMS = ("patch_embed", "stem", "embeddings")
_TASK_MODEL = re.compile(r"For(\w*Classification\w*|QuestionAnswering|MultipleChoice|NextSentencePrediction)$")


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises: torch's own norms, and any leaf whose class says so (RMSNorm, LayerNorm2d, ...)."""
    return not any(True for _ in module.children()) and "norm" in type(module).__name__.lower()


def is_transformers_model(model: nn.Module) -> bool:
    """Whether the model follows transformers' conventions, told without importing transformers."""
    return hasattr(model, "base_model_prefix") and hasattr(model, "config")


def parent_reads_weight(parent: nn.Module, name: str) -> bool:
    """Whether `parent` uses the weight of its child layer `name` itself, so that a module around it would never run.

    `nn.MultiheadAttention` does so with ``out_proj``; timm's BEiT, EVA and Swin v2 attention with ``qkv``, whose bias
    they keep apart in ``q_bias`` and ``v_bias``. Such a weight can be tuned sparsely only.

    Args:
        parent: The module that holds the layer.
        name: The layer's own name.

    Returns:
        True if calling the layer would have no effect.
    """
    return isinstance(parent, nn.MultiheadAttention) or (name == "qkv" and hasattr(parent, "q_bias"))


def find_head(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules that form the newly initialised task classifier; empty if the model has none."""
    modules = dict(model.named_modules())
    names = [name for name in _head_candidates(model) if name in modules]
    return tuple(part for name in names for part in _without_norms(name, modules[name]))


def _head_candidates(model: nn.Module) -> list[str]:
    configured = _pretrained_cfg(model).get("classifier")
    if configured:
        return [configured] if isinstance(configured, str) else list(configured)
    if callable(getattr(model, "get_classifier", None)):
        classifier = model.get_classifier()  # type: ignore[operator]  # nn.Module types every attribute as a tensor or a module
        wanted = classifier if isinstance(classifier, (tuple, list)) else (classifier,)
        return [name for name, module in model.named_modules() if any(module is each for each in wanted)]
    if is_transformers_model(model) and _TASK_MODEL.search(type(model).__name__):
        return [name for name, _ in model.named_children() if name != model.base_model_prefix]
    return []


def _without_norms(name: str, module: nn.Module) -> Iterator[str]:
    """The head's modules that hold parameters; a norm inside the head is pretrained, so it is left to the ranking."""
    if not any(is_norm(each) for each in module.modules()):
        if any(True for _ in module.parameters()):
            yield name
        return
    for child_name, child in module.named_children():
        yield from _without_norms(f"{name}.{child_name}", child)


def find_stem(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules at the model's ends: patch embedding or stem, token embeddings, language-model head."""
    stems: list[str] = []
    first_convs = _pretrained_cfg(model).get("first_conv")
    if first_convs:
        stems += [name.split(".")[0] for name in ([first_convs] if isinstance(first_convs, str) else first_convs)]
    else:
        stems += _shallowest(model, _STEMS)
    if is_transformers_model(model):
        stems += _embedding_modules(model)
    return tuple(dict.fromkeys(stems))


def _shallowest(model: nn.Module, wanted: tuple[str, ...]) -> list[str]:
    for last in wanted:
        names = [name for name, _ in model.named_modules() if name.rpartition(".")[2] == last]
        if names:
            depth = min(name.count(".") for name in names)
            return [name for name in names if name.count(".") == depth]
    return []


def _embedding_modules(model: Any) -> list[str]:
    """A pretrained language model's token embeddings and output layer, whatever they are called."""
    found = []
    for getter in ("get_input_embeddings", "get_output_embeddings"):
        try:
            found.append(getattr(model, getter)())
        except (AttributeError, NotImplementedError, TypeError):  # vision models and custom heads have none
            continue
    modules = [module for module in found if isinstance(module, nn.Module)]
    head = set(find_head(model))
    return [
        name for name, module in model.named_modules() if any(module is each for each in modules) and name not in head
    ]


def is_token(parameter: str) -> bool:
    """Whether a parameter is a class, distillation or register token."""
    return parameter.rpartition(".")[2] in _TOKENS


def is_position_embedding(parameter: str) -> bool:
    """Whether a parameter is, or lies in, an absolute position embedding."""
    return not _POSITIONS.isdisjoint(parameter.split(".")[-2:])


def _pretrained_cfg(model: nn.Module) -> dict[str, Any]:
    """timm's description of the checkpoint; models built directly from timm's classes have none."""
    config = getattr(model, "pretrained_cfg", None)
    return config if isinstance(config, dict) else {}
