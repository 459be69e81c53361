"""Fused projections, cut into the matrices they stand for."""

from __future__ import annotations

from typing import TypeAlias

from torch import nn

Slices: TypeAlias = tuple[tuple[str, int, int], ...]
"""``(operation, start, stop)`` ranges of output features, in order."""


def fused_slices(name: str, out_features: int, parent: nn.Module) -> Slices | None:
    """The row ranges of a fused projection, or None if the layer stands for one matrix.

    Args:
        name: The projection's own name (``qkv``, ``c_attn``, ``qkv_proj``, ``gate_up_proj``, ...).
        out_features: Its number of output features.
        parent: The module that owns and splits it; its head counts tell unequal slices (grouped-query attention).

    Returns:
        Contiguous ranges that cover all output features, or None. Layouts that interleave q, k and v head by head
        (GPT-NeoX's ``query_key_value``, LeViT, TinyViT) have no contiguous slices and stay one matrix.
    """
    if name in {"qkv", "to_qkv", "Wqkv", "in_proj_weight"} and not hasattr(parent, "key_dim"):
        return _equal(("q", "k", "v"), out_features)
    if name == "c_attn" and hasattr(parent, "split_size"):
        labels = ("k", "v") if getattr(parent, "is_cross_attention", False) else ("q", "k", "v")
        return _equal(labels, out_features)
    if name == "qkv_proj":
        return _grouped_query(out_features, parent)
    if name == "gate_up_proj":
        return _equal(("gate", "up"), out_features)
    return None


def _equal(labels: tuple[str, ...], out_features: int) -> Slices | None:
    size, rest = divmod(out_features, len(labels))
    return None if rest else tuple((label, i * size, (i + 1) * size) for i, label in enumerate(labels))


def _grouped_query(out_features: int, parent: nn.Module) -> Slices | None:
    config = getattr(parent, "config", None)
    heads = getattr(config, "num_attention_heads", None) or getattr(parent, "num_heads", None)
    groups = getattr(config, "num_key_value_heads", None) or getattr(parent, "num_key_value_heads", None) or heads
    if not isinstance(heads, int) or not isinstance(groups, int):
        return None
    head_size, rest = divmod(out_features, heads + 2 * groups)
    if rest:
        return None
    q, k = heads * head_size, (heads + groups) * head_size
    return (("q", 0, q), ("k", q, k), ("v", k, out_features))
