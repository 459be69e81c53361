"""From a weight file to a model: the published layouts, and everything that can be wrong with a file."""

from __future__ import annotations

import logging
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from sensitune.backbones import Backbone, BackboneSpec, load_backbone
from sensitune.backbones._reading import read_tensors
from sensitune.errors import CheckpointError

Tensors = dict[str, torch.Tensor]
Write = Callable[[Tensors, Path], None]
Archive = Callable[[Tensors], dict[str, np.ndarray]]


def state_of(name: str = "test_vit", **options: object) -> Tensors:
    """A model's tensors, none of them at a value that a fresh model would have."""
    model = timm.create_model(name, **options)
    return {key: torch.randn(t.shape) * 0.02 if t.is_floating_point() else t for key, t in model.state_dict().items()}


def backbone_of(state: Tensors, head: str = "head.") -> Tensors:
    return {name: tensor for name, tensor in state.items() if not name.startswith(head)}


def load(path: Path, name: str = "test_vit", **settings: int) -> Backbone:
    return load_backbone(BackboneSpec(name, checkpoint=str(path), **settings), num_classes=5)


def assert_filled(backbone: Backbone, expected: Tensors) -> None:
    state = backbone.model.state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=0, msg=name)


def write_safetensors(state: Tensors, path: Path) -> None:
    save_file(state, path)


def write_bare(state: Tensors, path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    ("write", "file", "dropped"),
    [
        (write_safetensors, "model.safetensors", ("head.bias", "head.weight")),
        (write_bare, "pytorch_model.bin", ("head.weight", "head.bias")),
        (write_bare, "model.pt", ("head.weight", "head.bias")),
    ],
)
def test_a_table_of_tensors_fills_every_backbone_tensor(
    write: Write, file: str, dropped: tuple[str, ...], tmp_path: Path
) -> None:
    state = state_of(num_classes=1000)
    write(state, tmp_path / file)
    backbone = load(tmp_path / file)
    assert_filled(backbone, backbone_of(state))
    assert sorted(backbone.dropped) == sorted(dropped)
    assert backbone.model.get_submodule("head").weight.shape == (5, 64)


def test_a_dropped_head_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, write_published: dict[str, Write]
) -> None:
    write_published["moco"](state_of(), tmp_path / "linear.pth.tar")
    with caplog.at_level(logging.INFO, logger="sensitune"):
        load(tmp_path / "linear.pth.tar")
    assert "linear.pth.tar: left out head.weight, head.bias." in caplog.text


def test_a_head_of_the_right_size_is_still_replaced(tmp_path: Path) -> None:
    state = state_of(num_classes=5)
    write_bare(state, tmp_path / "five.pth")
    assert not torch.equal(load(tmp_path / "five.pth").model.state_dict()["head.weight"], state["head.weight"])


def test_a_pretraining_decoder_is_left_out(tmp_path: Path) -> None:
    state = backbone_of(state_of())
    torch.save({"model": state | {"decoder_embed.weight": torch.ones(2), "mask_token": torch.ones(1)}}, "full.pth")
    backbone = load(tmp_path / "full.pth")
    assert_filled(backbone, state)
    assert "decoder_embed.weight" in backbone.dropped


def test_half_precision_files_fill_float32_models(tmp_path: Path) -> None:
    state = {name: tensor.half() for name, tensor in backbone_of(state_of()).items()}
    save_file(state, tmp_path / "half.safetensors")
    assert_filled(load(tmp_path / "half.safetensors"), {name: tensor.float() for name, tensor in state.items()})


def test_the_position_embedding_is_resized_to_the_image_size(tmp_path: Path) -> None:
    state = backbone_of(state_of())
    save_file(state, tmp_path / "m.safetensors")
    filled = load(tmp_path / "m.safetensors", image_size=96).model.state_dict()
    assert filled["pos_embed"].shape == (1, 1 + 6 * 6, 64)
    assert torch.equal(filled["pos_embed"][:, 0], state["pos_embed"][:, 0])
    assert torch.equal(filled["blocks.3.mlp.fc1.weight"], state["blocks.3.mlp.fc1.weight"])


def test_a_file_of_all_blocks_fills_the_first_ones(tmp_path: Path) -> None:
    state = backbone_of(state_of())
    save_file(state, tmp_path / "m.safetensors")
    backbone = load(tmp_path / "m.safetensors", num_blocks=2)
    kept = {name: tensor for name, tensor in state.items() if not re.match(r"blocks\.[2-9]", name)}
    assert_filled(backbone, kept)


@pytest.mark.parametrize(
    ("name", "publisher"), [("test_convnext", "facebook"), ("swin_tiny_patch4_window7_224", "microsoft")]
)
def test_hierarchical_models_load_from_their_publishers_layout(
    name: str, publisher: str, tmp_path: Path, write_published: dict[str, Write]
) -> None:
    state = state_of(name, num_classes=11)
    write_published[publisher](state, tmp_path / "published.pth")
    backbone = load(tmp_path / "published.pth", name)
    assert_filled(backbone, backbone_of(state, "head.fc."))
    assert set(backbone.dropped) == {"head.fc.weight", "head.fc.bias"}


def test_googles_archive_fills_every_backbone_tensor(tmp_path: Path, google_npz: Archive) -> None:
    state = state_of()
    np.savez(tmp_path / "ViT.npz", **google_npz(state))
    backbone = load(tmp_path / "ViT.npz")
    assert_filled(backbone, backbone_of(state))
    assert backbone.model.get_submodule("head").weight.isfinite().all()


def test_an_archive_without_a_tensor_is_refused(tmp_path: Path, google_npz: Archive) -> None:
    arrays = google_npz(state_of())
    del arrays["Transformer/encoder_norm/bias"]
    np.savez(tmp_path / "ViT.npz", **arrays)
    with pytest.raises(CheckpointError, match=r"ViT.npz does not fit test_vit .*Transformer/encoder_norm/bias"):
        load(tmp_path / "ViT.npz")


def test_an_archive_of_a_deeper_model_is_refused(tmp_path: Path, google_npz: Archive) -> None:
    arrays = google_npz(state_of())
    arrays["Transformer/encoderblock_6/LayerNorm_0/scale"] = np.ones(64)
    np.savez(tmp_path / "ViT.npz", **arrays)
    with pytest.raises(CheckpointError, match="it has 7 blocks, the model 6"):
        load(tmp_path / "ViT.npz")


def test_an_archive_for_a_model_that_reads_none_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", a=np.ones(1))
    with pytest.raises(CheckpointError, match=r"timm reads no .npz for test_convnext"):
        load(tmp_path / "m.npz", "test_convnext")


def test_a_truncated_archive_is_refused(tmp_path: Path, google_npz: Archive) -> None:
    np.savez(tmp_path / "ViT.npz", **google_npz(state_of()))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "ViT.npz").read_bytes()[:50_000])
    with pytest.raises(CheckpointError, match=r"cut.npz is truncated, damaged or not a weight file"):
        load(tmp_path / "cut.npz")


def test_an_archive_of_python_objects_is_refused_unopened(tmp_path: Path, google_npz: Archive) -> None:
    arrays = google_npz(state_of()) | {"embedding/bias": np.array([Hostile(tmp_path / "ran")], dtype=object)}
    np.savez(tmp_path / "ViT.npz", **arrays)
    with pytest.raises(CheckpointError, match="needs unsafe unpickling"):
        load(tmp_path / "ViT.npz")
    assert not (tmp_path / "ran").exists()


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def save_hostile_zip(content: object, path: Path) -> None:
    torch.save(content, path)


def save_hostile_legacy(content: object, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def save_hostile_pickle(content: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("save", [save_hostile_zip, save_hostile_legacy, save_hostile_pickle])
def test_a_hostile_pickle_is_refused_and_does_not_run(save: Callable[[object, Path], None], tmp_path: Path) -> None:
    save({"model": backbone_of(state_of()), "extra": Hostile(tmp_path / "ran")}, tmp_path / "hostile.pth")
    with pytest.raises(
        CheckpointError, match="needs unsafe unpickling, which Sensitune never does; convert it to safetensors"
    ):
        load(tmp_path / "hostile.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize(
    ("write", "file"),
    [(write_bare, "m.pth"), (write_bare, "m.bin"), (write_safetensors, "m.safetensors")],
)
def test_a_truncated_file_is_refused(write: Write, file: str, share: float, tmp_path: Path) -> None:
    write(state_of(), tmp_path / file)
    whole = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match=r"is truncated, damaged or not a weight file .* Download or copy it"):
        load(tmp_path / file)


def test_a_text_file_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "m.pth").write_text("404 not found")
    with pytest.raises(CheckpointError, match="is truncated, damaged or not a weight file"):
        load(tmp_path / "m.pth")


def test_a_missing_file_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"`checkpoint` nowhere.pth is not a file"):
        load(Path("nowhere.pth"))


def test_an_unknown_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.ckpt7").write_bytes(b"1")
    with pytest.raises(CheckpointError, match=r"has a suffix that Sensitune does not read. It reads .safetensors"):
        load(tmp_path / "m.ckpt7")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.ones(3), "holds a Tensor, not a table of tensors by name"),
        ({}, "holds a dict, not a table of tensors by name"),
        ({"weight": torch.ones(3), "epoch": 3}, "'epoch' is a int. Save the model's state_dict"),
    ],
)
def test_a_file_without_a_table_of_tensors_is_refused(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "m.pth")


def test_another_width_is_refused_with_the_first_shapes(tmp_path: Path) -> None:
    torch.save(backbone_of(state_of()), tmp_path / "m.pth")
    message = r"does not fit the model of \d+ tensors: .* of another shape \(pos_embed \[1, 101, 64\] instead of"
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "m.pth", "test_vit3")


def test_another_architecture_is_refused_with_names_and_counts(tmp_path: Path) -> None:
    torch.save(state_of("test_resnet"), tmp_path / "m.pth")
    message = (
        r"78 missing \(cls_token, pos_embed, .*\); \d+ that the model does not have \(conv1.0.weight, .*made for\."
    )
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "m.pth")


def test_one_missing_tensor_is_refused(tmp_path: Path) -> None:
    state = backbone_of(state_of())
    del state["blocks.3.norm2.bias"]
    torch.save(state, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=r"1 missing \(blocks.3.norm2.bias\)\. Name the architecture"):
        load(tmp_path / "m.pth")


def test_a_deeper_model_of_the_same_width_is_refused(tmp_path: Path) -> None:
    state = backbone_of(state_of())
    torch.save(state | {"blocks.6.norm1.weight": torch.ones(64)}, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=r"1 that the model does not have \(blocks.6.norm1.weight\)"):
        load(tmp_path / "m.pth")


def test_a_file_that_timm_cannot_convert_is_refused(tmp_path: Path) -> None:
    torch.save({"norms": torch.ones(2, 2)}, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match="does not fit test_convnext: its 1 tensors cannot be converted"):
        load(tmp_path / "m.pth", "test_convnext")


def test_the_parallel_prefix_is_taken_off_only_if_all_names_have_it(tmp_path: Path) -> None:
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "m.pth")
    assert set(read_tensors(tmp_path / "m.pth")) == {"module.a", "b"}


def prefixed(prefix: str, state: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: prefixed("_orig_mod.", state),
        lambda state: prefixed("module._orig_mod.", state),
        lambda state: {"n_averaged": torch.tensor(7)} | prefixed("module.", state),
        lambda state: {"state_dict": prefixed("model.", state), "epoch": 3},
        lambda state: {"state_dict": prefixed("net._orig_mod.", state)},
        lambda state: {"model_state_dict": state, "optimizer": {}},
        lambda state: {"model_ema": {"n_averaged": torch.tensor(7)} | prefixed("module.", state)},
    ],
)
def test_what_training_scripts_wrap_around_the_weights_is_taken_off(
    wrap: Callable[..., object], tmp_path: Path
) -> None:
    state = state_of()
    torch.save(wrap(state), tmp_path / "checkpoint.pth")
    assert_filled(load(tmp_path / "checkpoint.pth"), backbone_of(state))


@pytest.mark.parametrize(
    ("both", "names"),
    [
        (lambda raw, averaged: {"state_dict": raw, "state_dict_ema": averaged}, "state_dict_ema and state_dict"),
        (lambda raw, averaged: {"model": raw, "model_ema": averaged}, "model_ema and model"),
        (
            lambda raw, averaged: {"state_dict": prefixed("model.", raw) | prefixed("model_ema.module.", averaged)},
            "model_ema and model",
        ),
    ],
)
def test_of_weights_and_their_moving_average_the_average_is_taken_and_said(
    both: Callable[..., object], names: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw, averaged = state_of(), state_of()
    path = tmp_path / "checkpoint.pth"
    torch.save(both(raw, averaged), path)
    assert_filled(load(path), backbone_of(averaged))
    taken = names.partition(" ")[0]
    assert f"{path} holds {names}: the moving average, {taken}, is taken, as timm does." in caplog.text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    state = state_of()
    state["blocks.0.attn.qkv.weight"][1, 2] = value
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(
        CheckpointError, match=r"model.pt holds `blocks.0.attn.qkv.weight` with values that are not fin"
    ):
        load(tmp_path / "model.pt")


def test_an_archive_of_weights_that_are_not_finite_is_refused(tmp_path: Path, google_npz: Archive) -> None:
    arrays = google_npz(state_of())
    name = next(name for name in arrays if name.endswith("MlpBlock_3/Dense_0/kernel"))
    arrays[name][0, 0] = np.nan
    np.savez(tmp_path / "model.npz", **arrays)
    with pytest.raises(CheckpointError, match=r"holds `blocks.\d+.mlp.fc1.weight` with values that are not finite"):
        load(tmp_path / "model.npz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: tensor.to_sparse(), "is sparse, quantised or empty. Save it dense"),
        (lambda tensor: (tensor * 100).to(torch.int8), "as int8 instead of float32. Save the weights as they were"),
    ],
)
def test_sparse_and_quantised_weights_are_refused(
    change: Callable[[torch.Tensor], torch.Tensor], message: str, tmp_path: Path
) -> None:
    state = state_of()
    state["blocks.0.attn.qkv.weight"] = change(state["blocks.0.attn.qkv.weight"])
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "model.pt")


def test_a_file_that_holds_itself_is_refused(tmp_path: Path) -> None:
    content: dict[str, object] = {}
    content["model"] = content
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="is not a table of tensors by name: 'model' is a dict"):
        load(tmp_path / "model.pt")


def test_the_case_of_a_suffix_does_not_matter(tmp_path: Path) -> None:
    state = state_of()
    write_safetensors(state, tmp_path / "MODEL.SAFETENSORS")
    assert_filled(load(tmp_path / "MODEL.SAFETENSORS"), backbone_of(state))
