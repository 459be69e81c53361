"""Fused projections, cut into the matrices they stand for."""

from __future__ import annotations

from typing import TypeAlias

from torch import nn

Slices: TypeAlias = tuple[tuple[str, int, int], ...]
"""``(operation, start, stop)`` ranges of output features, in order."""

_FUSED = frozenset({"qkv", "to_qkv", "Wqkv", "in_proj_weight", "c_attn", "qkv_proj"})
_QUERY_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")
_KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "num_heads_kv", "kv_n_heads", "n_kv_heads", "kv_heads")
_HEAD_SIZES = ("head_dim", "dim_head", "head_size", "attention_head_size")
# Attention classes that mix q, k and v and carry no attribute that says so.
_MIXED = frozenset({"CodeGenAttention", "MiniMaxLightningAttention"})
# Feed-forward layers that store `up` before `gate`.
_UP_FIRST = frozenset({"Phi4MultimodalAudioMLP"})


def fused_slices(name: str, in_features: int, out_features: int, parent: nn.Module) -> Slices | None:
    """The row ranges of a fused projection, or None if the layer stands for one matrix or its layout is not known.

    Args:
        name: The projection's own name (``qkv``, ``c_attn``, ``qkv_proj``, ``gate_up_proj``, ...).
        in_features: Its number of input features.
        out_features: Its number of output features.
        parent: The module that owns and splits it; its attributes tell other layouts than three equal parts.

    Returns:
        Contiguous ranges that cover all output features, or None. Layouts that mix q, k and v head by head
        (GPT-NeoX's ``query_key_value``, LeViT, TinyViT, MaxViT, multi-head GPT-BigCode) have no contiguous slices and
        stay one matrix.
    """
    if name == "gate_up_proj":
        return _cut(("up", "gate") if _is_one_of(parent, _UP_FIRST) else ("gate", "up"), out_features, (1, 1))
    # A `c_attn` without a `split_size` belongs to a class that we do not know.
    if name not in _FUSED or (name == "c_attn" and not hasattr(parent, "split_size")) or _mixes_heads(parent):
        return None
    if getattr(parent, "is_cross_attention", False) or getattr(parent, "use_global", False):
        return _cut(("k", "v"), out_features, (1, 1))
    shares = _shares(in_features, out_features, parent)
    return None if shares is None else _cut(("q", "k", "v"), out_features, shares)


def _mixes_heads(parent: nn.Module) -> bool:
    """Whether q, k and v of each head, or of each group of heads, lie beside each other."""
    told = hasattr(parent, "key_dim") or getattr(parent, "head_first", False)
    return bool(told) or getattr(parent, "multi_query", None) is False or _is_one_of(parent, _MIXED)


def _shares(in_features: int, out_features: int, parent: nn.Module) -> tuple[int, int, int] | None:
    """How the output features are divided among q, k and v: by heads where their numbers are known and fit."""
    heads = _number(parent, _QUERY_HEADS)
    key_heads = _number(parent, _KEY_HEADS) or heads
    size = _number(parent, _HEAD_SIZES)
    thirds = out_features == 3 * in_features
    if heads and key_heads and size and (heads + 2 * key_heads) * size == out_features:
        return (heads, key_heads, key_heads)
    if heads and size:
        return (1, 1, 1) if thirds or out_features == 3 * heads * size else None
    if heads and key_heads and key_heads != heads and not thirds:
        return (heads, key_heads, key_heads)
    return None if out_features == 2 * in_features else (1, 1, 1)  # two of the three, and nobody says which


def _number(parent: nn.Module, names: tuple[str, ...]) -> int | None:
    """The first attribute of these names that is a positive number, of the module itself or of its configuration."""
    found = (getattr(holder, name, None) for holder in (parent, getattr(parent, "config", None)) for name in names)
    return next((value for value in found if type(value) is int and value > 0), None)


def _is_one_of(module: nn.Module, names: frozenset[str]) -> bool:
    return not names.isdisjoint(each.__name__ for each in type(module).__mro__)


def _cut(labels: tuple[str, ...], out_features: int, shares: tuple[int, ...]) -> Slices | None:
    unit, rest = divmod(out_features, sum(shares))
    stops = [unit * sum(shares[: i + 1]) for i in range(len(shares))]
    starts = [0, *stops]
    return None if rest else tuple(zip(labels, starts, stops, strict=False))
