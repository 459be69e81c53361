"""Every kind of file that is read: how a sound one is made, which of its files may be damaged how, and what is read."""

from __future__ import annotations

import csv
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from damage import BYTES, CARD, CSV, JSON, LINES, NPZ, PICKLE, SEALED, TENSORS, YAML, ZIP, Change
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from tuned_models import IMAGES, LABELS, mixed_allocation, tiny_vit, tune

from sensitune._schema import show_reason
from sensitune.allocation import Allocation, compute_lora_start
from sensitune.backbones import Backbone, BackboneSpec, load_backbone, save_checkpoint
from sensitune.backbones._hash import weights_hash
from sensitune.data import DataSettings, ImageData, ImageTransform, load_data, unpack_vtab1k
from sensitune.errors import AdapterFileError
from sensitune.runs import RunConfig, RunFolder
from sensitune.runs._evaluation import RecordedEvaluation
from sensitune.runs._lora_start import load_lora_start, save_lora_start
from sensitune.sensitivity import Sensitivity, estimate_sensitivity
from sensitune.sweeps import SweepConfig
from sensitune.sweeps._collect import SweepRecord
from sensitune.training import (
    AdapterManifest,
    AdapterOrigin,
    Answers,
    Evaluation,
    Recipe,
    TrainingResult,
    load_tuned,
    read_result,
)
from sensitune.training._checkpoints import TrainingSetting, open_checkpoints
from sensitune.training._result import EpochMetrics, TrainingFolder, write_metrics, write_result
from sensitune.training._weights import save_weights
from sensitune.tuner import ModelCard, SptConfig


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        make: Writes it into an empty folder.
        changes: File -> what may happen to it; a name that ends in ``*`` stands for any that begin so.
        read: Reads the folder; what it returns stands for everything that matters.
        sealed: Whether any other content must be noticed. False where people write the file, or others do, so that
            another content is another meaning.
        share: How many of the default tests' inputs it gets, by weight.
    """

    make: Callable[[Path], None]
    changes: Mapping[str, tuple[Change, ...]]
    read: Callable[[Path], Any]
    sealed: bool = True
    share: float = 1.0


# -- what Sensitune writes --------------------------------------------------------------------------------------------


def _outline_only(depth: int = 1) -> VisionTransformer:
    return tiny_vit(depth=depth)


def _make_sensitivity(folder: Path) -> None:
    scores = estimate_sensitivity(_outline_only(), [(IMAGES, LABELS)], num_batches=1, keep_gradients=True)
    scores.save(folder / "s.safetensors")


def _read_sensitivity(folder: Path, *, lazy: bool = False) -> Any:
    found = Sensitivity.load(folder / "s.safetensors", lazy=lazy)
    return dict(found.scores), dict(found.gradients or {}), found.outline, dict(found.metadata)


def _read_sensitivity_lazily(folder: Path) -> Any:
    return _read_sensitivity(folder, lazy=True)


def _make_allocation(folder: Path) -> None:
    mixed_allocation(tiny_vit()).save(folder / "a.safetensors")


def _read_allocation(folder: Path) -> Any:
    found = Allocation.load(folder / "a.safetensors")
    tuned = get_peft_model(tiny_vit(), SptConfig.from_allocation(found))
    number = sum(parameter.numel() for parameter in tuned.parameters() if parameter.requires_grad)
    return found.outline, found.structured, found.vectors, found.sparse, found.metadata, found.summary(), number


def _make_lora_start(folder: Path) -> None:
    model = tiny_vit(depth=1)
    scores = estimate_sensitivity(model, [(IMAGES, LABELS)], num_batches=1, keep_gradients=True)
    allocation = mixed_allocation(model)
    save_lora_start(folder / "l.safetensors", compute_lora_start(scores, allocation))


def _read_lora_start(folder: Path) -> Any:
    return load_lora_start(folder / "l.safetensors")


def _make_answers(folder: Path) -> None:
    ids, sure = torch.tensor([0, 1, 2, 1]), torch.tensor([0.5, 0.9, 1.0, 0.4])
    Answers.of(Evaluation(0.75, 1.0, 4, ids, ids.roll(1), sure), num_classes=3).save(folder / "n.safetensors")


def _read_answers(folder: Path) -> Any:
    found = Answers.load(folder / "n.safetensors")
    return found.labels, found.predictions, found.confidences, found.num_classes, found.confident_mistakes(3)


def _base() -> Backbone:
    model = tiny_vit()
    spec = BackboneSpec("vit_tiny_patch16_224", pretrained=False)
    return Backbone(model, spec, 16, (0.5,) * 3, (0.5,) * 3, "bicubic", weights_hash(model))


def _manifest() -> AdapterManifest:
    base = _base()
    counts = {"trainable_params": 100, "head_params": 65, "backbone_params": 1000}
    origin = AdapterOrigin("spt-lora", seed=0, **counts, data={"source": "wood", "split_sizes": {"train": 3}})
    names = ("ant", "bee", "cat", "dog", "elk")
    return AdapterManifest(base.spec, base.weights_hash, names, ImageTransform(16), origin)


def _make_adapter(folder: Path) -> None:
    save_weights(tune(tiny_vit(), mixed_allocation(tiny_vit())), folder / "adapter", manifest=_manifest())


def _make_lora(folder: Path) -> None:
    config = LoraConfig(r=2, target_modules=["qkv"], modules_to_save=["head"], init_lora_weights=False)
    save_weights(get_peft_model(tiny_vit(), config), folder / "adapter", manifest=_manifest())


def _read_adapter(folder: Path) -> Any:
    model, manifest = load_tuned(folder / "adapter", backbone=_base())
    with torch.no_grad():
        return model(IMAGES), manifest.class_names, manifest.transform


def _make_plain_adapter(folder: Path) -> None:
    tune(tiny_vit(), mixed_allocation(tiny_vit())).save_pretrained(folder / "adapter")


def _read_plain_adapter(folder: Path) -> Any:
    try:
        model = PeftModel.from_pretrained(tiny_vit(), folder / "adapter").eval()
    except KeyError as error:  # PEFT's word for a head without its bias, before it shows the file to anybody
        raise AdapterFileError(f"adapter_model.safetensors: {show_reason(error)}") from error
    with torch.no_grad():
        return model(IMAGES)


def _read_card(folder: Path) -> Any:
    ModelCard("A title", "A summary.", {}, metadata={"base_model": "x"}).write(folder / "adapter")
    return (folder / "adapter" / "README.md").read_text()


def _read_manifest(folder: Path) -> Any:
    return AdapterManifest.load(folder / "adapter")


_METRICS = tuple(EpochMetrics(epoch, 1 / epoch, 1e-3, 2.5, 0.5 + epoch / 10, 0.7) for epoch in (1, 2, 3))


def _make_run(folder: Path) -> None:
    config = RunConfig(BackboneSpec("vit_tiny_patch16_224", pretrained=False), DataSettings("wood"))
    run = RunFolder.open(folder / "run", config)
    numbers = {"trained_params": 90, "num_train_images": 12, "seconds": 7.5, "seed": 0}
    result = TrainingResult(_METRICS, 3, 3, 0.8, 0.8, **numbers, device="cpu", precision="float32")
    write_metrics(run.training.metrics, _METRICS)
    write_result(run.training, result)
    run.write_evaluation(RecordedEvaluation("test", "last", 0.8, 0.4, 20))


def _read_run(folder: Path) -> Any:
    run = RunFolder.load(folder / "run")
    return run.config, read_result(run.path), run.read_evaluation()


def _make_checkpoints(folder: Path) -> None:
    training = TrainingFolder(folder / "run")
    open_checkpoints(training, TrainingSetting(Recipe(), 0, 12), resume=True)


def _read_checkpoints(folder: Path) -> Any:
    return open_checkpoints(TrainingFolder(folder / "run"), TrainingSetting(Recipe(), 0, 12), resume=True)


_SWEEP = """\
about: a small one
tasks: {natural: [wood, bark], other: [fgvc/cub]}
methods:
  SPT-LoRA: {allocation: {method: spt-lora}}
  Sparse: {allocation: {method: sparse}}
choose: {allocation.budget: [200_000, "0.4M"]}
seeds: [0, 1]
published: {label: Paper, source: somewhere, tasks: {wood: 89.1}, mean: 89.8}
run:
  backbone: {name: vit_b16_in21k}
  recipe: {precision: float32, learning_rate: 0.001}
"""


def _make_sweep(folder: Path) -> None:
    (folder / "sweep.yaml").write_text(_SWEEP)


def _read_sweep(folder: Path) -> Any:
    return SweepConfig.from_yaml(folder / "sweep.yaml")


def _make_results(folder: Path) -> None:
    key = {"task": "wood", "method": "LoRA", "setting": {"allocation.budget": 3}, "seed": 0, "retrained": True}
    run = {"accuracy": 0.5, "validation_accuracy": None, "trainable_params": 3, "seconds": 1.5, "folder": "runs/x"}
    tried = {"task": "wood", "method": "LoRA", "accuracy": {"x": 0.5}}
    record = {"complete": False, "num_runs": 2, "runs": [{"key": key, **run}], "failed": [], "validation": [tried]}
    (folder / "results.json").write_text(json.dumps(record))


def _read_results(folder: Path) -> Any:
    return SweepRecord.load(folder / "results.json")


# -- weights from outside ---------------------------------------------------------------------------------------------


def _state() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {name: torch.randn_like(tensor) for name, tensor in timm.create_model("test_vit").state_dict().items()}


def _checkpoint(name: str, write: Callable[[Path], None]) -> tuple[Callable[[Path], None], Callable[[Path], Any]]:
    def make(folder: Path) -> None:
        write(folder / name)

    def read(folder: Path) -> Any:
        found = load_backbone(BackboneSpec("test_vit", checkpoint=str(folder / name)), num_classes=3)
        return found.weights_hash, found.mean, found.class_names

    return make, read


def _save_safetensors(path: Path) -> None:
    save_file(_state(), path)


def _save_merged(path: Path) -> None:
    torch.manual_seed(1)
    model = timm.create_model("test_vit", num_classes=3)
    names = ("ant", "bee", "cat")
    spec = BackboneSpec("test_vit", pretrained=False)
    save_checkpoint(model, path, spec=spec, class_names=names, preprocessing={"mean": (0.4, 0.5, 0.6)})


def _save_pickle(path: Path) -> None:
    torch.save(_state(), path)


def _save_google(path: Path) -> None:
    np.savez(path, **google_arrays({name: tensor.numpy() for name, tensor in _state().items()}))


def google_arrays(arrays: Mapping[str, Any], num_heads: int = 2) -> dict[str, Any]:
    """The layout of Google's archives: kernels ``[in, out]``, convolutions ``[height, width, in, out]``."""
    dim = arrays["cls_token"].shape[-1]
    out = {
        "cls": arrays["cls_token"],
        "embedding/kernel": arrays["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": arrays["patch_embed.proj.bias"],
        "Transformer/posembed_input/pos_embedding": arrays["pos_embed"],
        "Transformer/encoder_norm/scale": arrays["norm.weight"],
        "Transformer/encoder_norm/bias": arrays["norm.bias"],
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


# -- images and lists of them -----------------------------------------------------------------------------------------

_SUFFIXES = (".png", ".jpg", ".bmp", ".gif", ".webp", ".tif")


def _picture(number: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _write_pictures(folder: Path, count: int = 6) -> list[tuple[str, str]]:
    rows = []
    for label in ("ant", "bee"):
        (folder / label).mkdir(parents=True)
        for number in range(count):
            name = f"{label}/{number}{_SUFFIXES[number % len(_SUFFIXES)]}"
            _picture(number).save(folder / name)
            rows.append((name, label))
    return rows


def _content(data: ImageData) -> Any:
    """Names and labels by split; the pixels are what the file says."""
    from datasets import Image as ImageFeature

    splits = {name: split.cast_column("image", ImageFeature(decode=False)) for name, split in data.dataset.items()}
    named = {name: [(row["image"]["path"], row["label"]) for row in split] for name, split in splits.items()}
    return named, data.class_names


def _make_images(folder: Path) -> None:
    _write_pictures(folder / "images")


def _read_images(folder: Path) -> Any:
    return _content(load_data(folder / "images"))


def _make_csv(folder: Path) -> None:
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *_write_pictures(folder / "images", 4)])


def _make_json(folder: Path) -> None:
    rows = [{"path": path, "label": label} for path, label in _write_pictures(folder / "images", 4)]
    (folder / "table.json").write_text(json.dumps(rows))


def _make_lines(folder: Path) -> None:
    rows = [{"path": path, "label": label} for path, label in _write_pictures(folder / "images", 4)]
    (folder / "table.jsonl").write_text("\n".join(map(json.dumps, rows)))


def _read_table(name: str) -> Callable[[Path], Any]:
    return lambda folder: _content(load_data(DataSettings(str(folder / name), root=str(folder / "images"))))


def _make_tar(folder: Path) -> None:
    with tarfile.open(folder / "shard.tar", "w") as archive:
        for number in range(8):
            file = io.BytesIO()
            _picture(number).save(file, "PNG")
            for name, content in (
                (f"{number:04d}.png", file.getvalue()),
                (f"{number:04d}.cls", str(number % 2).encode()),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def _read_tar(folder: Path) -> Any:
    data = load_data(folder / "shard.tar")
    return {name: list(split["label"]) for name, split in data.dataset.items()}, data.class_names


def _make_zip(folder: Path) -> None:
    with zipfile.ZipFile(folder / "vtab.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(4):
            file = io.BytesIO()
            _picture(number).save(file, "PNG")
            archive.writestr(f"vtab/cifar/images/{number}.png", file.getvalue())
        archive.writestr("vtab/cifar/train800.txt", "images/0.png 1\nimages/1.png 0\n")
        archive.writestr("vtab/cifar/test.txt", "images/2.png 1\n")


def _read_zip(folder: Path) -> Any:
    out = folder / "out"
    tasks = unpack_vtab1k(folder / "vtab.zip", out)
    return tasks, {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


KINDS: dict[str, Kind] = {
    "sensitivity": Kind(_make_sensitivity, {"s.safetensors": TENSORS}, _read_sensitivity),
    "sensitivity, lazily": Kind(_make_sensitivity, {"s.safetensors": TENSORS}, _read_sensitivity_lazily),
    "allocation": Kind(_make_allocation, {"a.safetensors": TENSORS}, _read_allocation),
    "LoRA start": Kind(_make_lora_start, {"l.safetensors": TENSORS}, _read_lora_start),
    "answers": Kind(_make_answers, {"n.safetensors": TENSORS}, _read_answers),
    "answers, sealed again": Kind(_make_answers, {"n.safetensors": SEALED}, _read_answers, sealed=False),
    "sensitivity, sealed again": Kind(_make_sensitivity, {"s.safetensors": SEALED}, _read_sensitivity, sealed=False),
    "allocation, sealed again": Kind(_make_allocation, {"a.safetensors": SEALED}, _read_allocation, sealed=False),
    "adapter weights": Kind(_make_adapter, {"adapter/adapter_model.safetensors": TENSORS}, _read_adapter),
    "model card": Kind(_make_adapter, {"adapter/README.md": CARD}, _read_card, sealed=False),
    "adapter config": Kind(_make_adapter, {"adapter/adapter_config.json": JSON}, _read_adapter),
    "LoRA adapter": Kind(
        _make_lora,
        {"adapter/adapter_config.json": JSON, "adapter/adapter_model.safetensors": TENSORS},
        _read_adapter,
    ),
    "sensitune.json": Kind(_make_adapter, {"adapter/sensitune.json": JSON}, _read_manifest),
    "weights alone": Kind(
        _make_plain_adapter, {"adapter/adapter_model.safetensors": TENSORS}, _read_plain_adapter, sealed=False
    ),
    "run folder": Kind(
        _make_run,
        {"run/training.json": JSON, "run/metrics.jsonl": LINES, "run/evaluation.json": JSON, "run/run.yaml": YAML},
        _read_run,
        sealed=False,
    ),
    "training record": Kind(
        _make_checkpoints,
        {"run/checkpoints/recipe.json": JSON},
        _read_checkpoints,
        sealed=False,
    ),
    "sweep": Kind(_make_sweep, {"sweep.yaml": YAML}, _read_sweep, sealed=False),
    "results": Kind(_make_results, {"results.json": JSON}, _read_results, sealed=False),
    **{
        f"checkpoint {suffix.strip()}": Kind(make, {f"w{suffix}": changes}, read, sealed="merged" in suffix)
        for suffix, changes, write in (
            (".safetensors", TENSORS, _save_safetensors),
            (".pth", PICKLE, _save_pickle),
            (".npz", NPZ, _save_google),
            (" merged.safetensors", TENSORS, _save_merged),
        )
        for make, read in [_checkpoint(f"w{suffix}", write)]
    },
    "images": Kind(_make_images, {"images/bee/*": BYTES}, _read_images, sealed=False),
    "table .csv": Kind(_make_csv, {"table.csv": CSV}, _read_table("table.csv"), sealed=False),
    "table .json": Kind(_make_json, {"table.json": JSON}, _read_table("table.json"), sealed=False),
    "table .jsonl": Kind(_make_lines, {"table.jsonl": LINES}, _read_table("table.jsonl"), sealed=False),
    "tar": Kind(_make_tar, {"shard.tar": BYTES}, _read_tar, sealed=False, share=0.3),
    "zip": Kind(_make_zip, {"vtab.zip": ZIP}, _read_zip, sealed=False),
}
