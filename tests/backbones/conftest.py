"""timm states written the way the weights' publishers write theirs, renamed and reshaped without timm's help."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

Tensors = dict[str, torch.Tensor]
Write = Callable[[Tensors, Path], None]


def renamed(state: Tensors, renames: list[tuple[str, str]]) -> Tensors:
    for pattern, replacement in renames:
        state = {re.sub(pattern, replacement, name): tensor for name, tensor in state.items()}
    return state


def write_google(state: Tensors, path: Path) -> None:
    np.savez(path, **google_arrays(state))


def google_arrays(state: Tensors, num_heads: int = 2) -> dict[str, np.ndarray]:
    """Google's archives: kernels ``[in, out]``, convolutions ``[height, width, in, out]``, heads apart."""
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    dim = arrays["cls_token"].shape[-1]
    out = {
        "cls": arrays["cls_token"],
        "embedding/kernel": arrays["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": arrays["patch_embed.proj.bias"],
        "Transformer/posembed_input/pos_embedding": arrays["pos_embed"],
        "Transformer/encoder_norm/scale": arrays["norm.weight"],
        "Transformer/encoder_norm/bias": arrays["norm.bias"],
        "head/kernel": arrays["head.weight"].T,
        "head/bias": arrays["head.bias"],
        "pre_logits/kernel": np.ones((dim, dim), np.float32),
        "pre_logits/bias": np.ones(dim, np.float32),
    }
    for block in sorted({name.split(".")[1] for name in arrays if name.startswith("blocks.")}):
        ours, theirs = f"blocks.{block}.", f"Transformer/encoderblock_{block}/"
        attention = f"{theirs}MultiHeadDotProductAttention_1/"
        weights = arrays[f"{ours}attn.qkv.weight"].reshape(3, dim, dim)
        biases = arrays[f"{ours}attn.qkv.bias"].reshape(3, num_heads, -1)
        for part, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
            out[f"{attention}{part}/kernel"] = weight.T.reshape(dim, num_heads, -1)
            out[f"{attention}{part}/bias"] = bias
        out[f"{attention}out/kernel"] = arrays[f"{ours}attn.proj.weight"].T.reshape(num_heads, -1, dim)
        out[f"{attention}out/bias"] = arrays[f"{ours}attn.proj.bias"]
        for own, norm in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            out[f"{theirs}{norm}/scale"] = arrays[f"{ours}{own}.weight"]
            out[f"{theirs}{norm}/bias"] = arrays[f"{ours}{own}.bias"]
        for own, dense in (("fc1", "Dense_0"), ("fc2", "Dense_1")):
            out[f"{theirs}MlpBlock_3/{dense}/kernel"] = arrays[f"{ours}mlp.{own}.weight"].T
            out[f"{theirs}MlpBlock_3/{dense}/bias"] = arrays[f"{ours}mlp.{own}.bias"]
    return out


def write_mae(state: Tensors, path: Path) -> None:
    """timm's names under ``model``, without a head; later files also hold the training script's settings."""
    backbone = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    torch.save({"model": backbone, "args": argparse.Namespace(lr=0.1), "epoch": 800}, path)


def write_moco(state: Tensors, path: Path) -> None:
    """A linear probe's checkpoint: every name with the prefix of parallel training, a 1000-class head, momenta."""
    momenta = {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    prefixed = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"epoch": 90, "arch": "vit_base", "state_dict": prefixed, "best_acc1": 76.5, "optimizer": momenta}, path)


def write_swin(state: Tensors, path: Path) -> None:
    """Downsampling at the end of the stage before, fixed indices of the windows among the weights."""
    moved = {
        re.sub(r"layers\.(\d+)\.downsample", lambda found: f"layers.{int(found[1]) - 1}.downsample", name): tensor
        for name, tensor in state.items()
    }
    buffers = {
        "layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49, dtype=torch.int64),
        "layers.0.blocks.1.attn_mask": torch.zeros(64, 49, 49),
    }
    torch.save({"model": renamed(moved, [(r"^head\.fc\.", "head.")]) | buffers}, path)


def write_convnext(state: Tensors, path: Path) -> None:
    """Meta's own names for the same modules."""
    renames = [
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d+)\.downsample\.", r"downsample_layers.\1."),
        (r"^stages\.(\d+)\.blocks\.", r"stages.\1."),
        ("conv_dw", "dwconv"),
        (r"mlp\.fc", "pwconv"),
        (r"^head\.norm\.", "norm."),
        (r"^head\.fc\.", "head."),
    ]
    torch.save({"model": renamed(state, renames)}, path)


@pytest.fixture(scope="session")
def write_published() -> dict[str, Write]:
    """Publisher -> what writes a timm state as a file of theirs."""
    return {
        "google": write_google,
        "mae": write_mae,
        "moco": write_moco,
        "microsoft": write_swin,
        "facebook": write_convnext,
    }


@pytest.fixture(scope="session")
def google_npz() -> Callable[[Tensors], dict[str, np.ndarray]]:
    """A timm state as the arrays of Google's archives."""
    return google_arrays
