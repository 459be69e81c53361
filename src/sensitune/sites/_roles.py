"""Tokens, position embeddings, norms and weights that a parent reads: by role, never by position."""

from __future__ import annotations

import sys

from torch import nn

_TOKENS = frozenset({
    "cls_token", "class_token", "class_embedding", "dist_token", "distillation_token",
    "reg_token", "register_token", "register_tokens",
})  # fmt: skip
_POSITIONS = frozenset({
    "pos_embed", "pos_embedding", "pos_emb", "pos_embed_win", "position_embedding", "position_embeddings",
    "positional_embedding", "absolute_pos_embed", "absolute_position_embeddings", "embed_positions", "wpe",
})  # fmt: skip


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises: torch's own norms, and any leaf whose class says so (RMSNorm, LayerNorm2d, ...)."""
    return not any(True for _ in module.children()) and "norm" in type(module).__name__.lower()


def clears_key_bias(parent: nn.Module) -> bool:
    """Whether a module sets the bias of its keys to zero in every forward: torchvision's second Swin attention."""
    attention = getattr(sys.modules.get("torchvision.models.swin_transformer"), "ShiftedWindowAttentionV2", None)
    return attention is not None and isinstance(parent, attention)


def parent_reads_weight(parent: nn.Module, name: str) -> bool:
    """Whether `parent` uses the weight of its child layer `name` itself, so that a module around it would never run.

    `nn.MultiheadAttention` does so with ``out_proj``; timm's BEiT, EVA and Swin v2 attention with ``qkv``, whose bias
    they keep apart in ``q_bias`` and ``v_bias``; Mamba with ``dt_proj``. Such a weight can be tuned sparsely only.

    Args:
        parent: The module that holds the layer.
        name: The layer's own name.

    Returns:
        True if calling the layer would have no effect.
    """
    by_name = (name == "qkv" and hasattr(parent, "q_bias")) or (name == "dt_proj" and hasattr(parent, "x_proj"))
    return isinstance(parent, nn.MultiheadAttention) or by_name


def is_token(parameter: str) -> bool:
    """Whether a parameter is a class, distillation or register token."""
    return parameter.rpartition(".")[2] in _TOKENS


def is_position_embedding(parameter: str) -> bool:
    """Whether a parameter is, or lies in, an absolute position embedding."""
    return not _POSITIONS.isdisjoint(parameter.split(".")[-2:])
