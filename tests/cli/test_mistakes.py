"""Every mistake is found before anything is computed or written: one sentence, exit code 2, and nothing left behind.

One mistake in six always, all of them with `pytest -m "slow or not slow" tests/cli/test_mistakes.py`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from sensitune import _lock
from sensitune.cli._options import _settings, flag_of
from sensitune_command import main

COUNT = ["0", "-1", "1.5", "abc", "", "1e3", "nan"]
SHARE = ["-0.1", "1", "2", "abc", "", "nan", "inf"]
CHOICE = ["nonsense", "", "1"]
SWITCH = ["yes", "2"]
SEED = ["-1", "4294967296", "0.5", "abc", ""]
SIDE = [*COUNT, "5000", "100000000"]
RATE = ["-1e-3", "11", "1e38", "abc", "", "nan", "inf"]
# Setting -> values that it may not have. Every setting of a run has a row.
MISTAKES: dict[str, list[str]] = {
    "backbone.name": ["", "no_such_model", "vit_tiny_patch16_224.no_such_tag", "vit_tniy_patch16_224", "../model"],
    "backbone.checkpoint": ["", "missing.safetensors", ".", "weights.xyz"],
    "backbone.pretrained": SWITCH,
    "backbone.image_size": [*SIDE, "33"],
    "backbone.num_blocks": [*COUNT, "13"],
    "backbone.head": ["no_such_module", "", "head.weight", "blocks.9.mlp"],
    "data.source": ["", "missing", "missing.csv", "missing.tar", "hf:", "vtab1k/no_such_task", "fgvc/no_such_set"],
    "data.root": ["", "missing"],
    "data.train_on_validation": SWITCH,
    "data.split_seed": SEED,
    "data.max_train": [*COUNT, "1"],
    "data.shots": [*COUNT, "1000"],
    "data.max_test": COUNT,
    "data.max_pixels": [*COUNT, "9"],
    "data.test": SWITCH,
    "data.skip_unreadable": SWITCH,
    "data.normalize": CHOICE,
    "data.resize": [*SIDE, "16"],
    "data.augment": SWITCH,
    "sensitivity.num_batches": COUNT,
    "sensitivity.batch_size": COUNT,
    "sensitivity.criterion": CHOICE,
    "sensitivity.micro_batch_size": COUNT,
    "sensitivity.drop_path": SHARE,
    "sensitivity.split_fused": SWITCH,
    "sensitivity.keep_gradients": SWITCH,
    "sensitivity.keep_halves": SWITCH,
    "allocation.method": CHOICE,
    "allocation.budget": [
        *("0", "-5", "abc", "", "1.5", "0%", "-1%", "200%", "1_0%", "\uff15%", "1,0", "1e999999999", "9" * 30, "100"),
        *("nan", "inf", "%", "M", "10GB", "1000000000"),
    ],
    "allocation.tau": [*COUNT, "1000000000"],
    "allocation.rank": [*COUNT, "193", "100000"],
    "allocation.alpha": ["0.5", "0", "-1", "abc", "", "nan", "inf"],
    "allocation.beta": ["0.5", "0", "-1", "abc", "", "nan", "inf"],
    "allocation.lora_start": CHOICE,
    "allocation.servable": SWITCH,
    "allocation.peft": ["", "{", "{}", "[]", '{"peft_type": "NONE"}', '{"peft_type": "LORA", "q": 1}', "missing.json"],
    "recipe.learning_rate": ["0", *RATE],
    "recipe.in_place_rate": ["-1", "1001", "abc", "", "nan", "inf"],
    "recipe.weight_decay": RATE,
    "recipe.batch_size": COUNT,
    "recipe.epochs": COUNT,
    "recipe.warmup_share": SHARE,
    "recipe.warmup_learning_rate": RATE,
    "recipe.final_learning_rate": RATE,
    "recipe.dropout": SHARE,
    "recipe.drop_path": SHARE,
    "recipe.label_smoothing": SHARE,
    "recipe.mixup": ["-1", "1001", "abc", "", "nan", "inf"],
    "recipe.precision": CHOICE,
    "recipe.clip_grad_norm": ["0", "-1", "abc", "", "nan", "inf"],
    "recipe.validate": CHOICE,
    "recipe.head_start": CHOICE,
    "compute.device": [*CHOICE, "mps", "cuda:0", "gpu"],
    "compute.num_workers": ["-1", "257", "1.5", "abc", ""],
    "compute.sharded": SWITCH,
    "seed": SEED,
    "preset": CHOICE,
}
# What goes with a setting so that the mistake is the setting's own.
BESIDE = {
    "allocation.peft": ["--method", "peft"],
    "backbone.checkpoint": ["--backbone.pretrained"],
}
CASES = [(name, value) for name, values in MISTAKES.items() for value in values]


def mostly_slow(cases: Sequence[Any], *, every: int = 6) -> list[Any]:
    """All of them with `pytest -m slow`, one in a few always."""
    return [
        pytest.param(*each, marks=() if index % every == 0 else pytest.mark.slow, id=" ".join(each)[:60])
        for index, each in enumerate(cases)
    ]


def test_every_setting_has_its_mistakes() -> None:
    assert set(MISTAKES) == set(_settings())


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_lock, "PATIENCE", 0.0)


@pytest.fixture
def nothing_is_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """And what is said is one sentence."""
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    yield
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert len(captured.err) < 700
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("name", "value"), mostly_slow(CASES))
@pytest.mark.usefixtures("nothing_is_written")
def test_a_setting_that_makes_no_sense_is_refused(name: str, value: str, settings: list[str], tmp_path: Path) -> None:
    beside = BESIDE.get(name, [])
    assert main(["run", *settings, *beside, flag_of(name), value, "--output", str(tmp_path / "runs" / "a")]) == 2


@pytest.mark.parametrize(
    "method", ["spt-lora", "spt-adapter", "sparse", "random", "random-sparse", "layerwise", "neuron"]
)
@pytest.mark.parametrize("budget", ["10", "100%", "5M"])
@pytest.mark.usefixtures("nothing_is_written")
def test_a_budget_that_has_no_room_in_the_model_is_refused(
    method: str, budget: str, settings: list[str], tmp_path: Path
) -> None:
    options = ["--method", method, "--budget", budget, "--output", str(tmp_path / "runs" / "a")]
    assert main(["run", *settings, *options]) == 2


@pytest.fixture
def run(finished: Path, squares: Path, tmp_path: Path) -> Path:
    """A finished run, and beside it what commands read."""
    shutil.copytree(finished, tmp_path / "run")
    shutil.copy(squares / "red" / "0.png", tmp_path / "a.png")
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    (tmp_path / "folder").mkdir()
    return tmp_path / "run"


SWEEP = """
tasks: {natural: [squares]}
methods: {LoRA: {allocation: {method: lora}, backbone: {name: vit_tiny_patch16_224, pretrained: false}}}
"""
COMMANDS = """
run
run --model m
run --data d
run --model m --data d --no-such-option 3
run --model m --data d stray
run --model m --data d --epochs
run --model m --data d --config missing.yaml
run --model m --data d --config
run --config a.png
run --model m --data d --output
run --model m --data d --output a.png
run --model m --data d --output folder/../sweep.yaml
run --method lora --budget 5 --model m --data d
run --method head --allocation.tau 5 --model m --data d
run --method sparse --allocation.lora-start gradient --model m --data d
run --budget 5 --allocation.tau 5 --model m --data d
run --data.shots 5 --data.max-train 5 --model m --data d
run --output run --epochs 9
run --output run --model other
sensitivity --model m --data missing
sensitivity --model m --data d --budget 1_0%
sensitivity --output run --budget 1%
allocate
allocate missing
allocate folder
allocate a.png
allocate run extra
allocate run --output x
train
train missing
train folder
train run --device cuda:9
train run --device
evaluate
evaluate missing
evaluate run --split valid
evaluate run --split
evaluate run --weights best
evaluate run --device tpu
evaluate run --device mps
predict
predict run/adapter
predict missing a.png
predict folder a.png
predict run a.png
predict run/adapter missing.png
predict run/adapter folder
predict run/adapter sweep.yaml
predict run/adapter a.png --batch-size 0
predict run/adapter a.png --batch-size -1
predict run/adapter a.png --batch-size x
predict run/adapter a.png --device mps
predict run/adapter a.png --device gpu
predict run/adapter a.png --output a.png
predict run/adapter a.png --output folder
predict run/adapter a.png --output run/adapter/sensitune.json
predict run/adapter a.png --output run/adapter/new.csv
predict run/adapter a.png --output a.png/b.csv
predict run/adapter a.png --checkpoint missing.pth
merge
merge run/adapter
merge missing --output m.safetensors
merge folder --output m.safetensors
merge run/adapter --output m.pth
merge run/adapter --output m
merge run/adapter --output folder
merge run/adapter --output run/adapter/adapter_model.safetensors
merge run/adapter --output a.png/m.safetensors
merge run/adapter --output m.safetensors --checkpoint missing.safetensors
merge run/adapter --output m.safetensors --checkpoint a.png
export
export run/adapter
export missing --output lora
export folder --output lora
export run/adapter --output lora --format onnx
export run/adapter --output run
export run/adapter --output run/adapter
export run/adapter --output a.png
export run/adapter --output a.png/lora
export run/adapter --output lora --device tpu
export run/adapter --output lora --checkpoint missing.pth
sites
sites no_such_model
sites vit_tiny_patch16_224 --image-size 0
sites vit_tiny_patch16_224 --image-size -16
sites vit_tiny_patch16_224 --image-size 33
sites vit_tiny_patch16_224 --image-size 100000
sites vit_tiny_patch16_224 --image-size x
sites vit_tiny_patch16_224 --num-blocks 0
sites vit_tiny_patch16_224 --num-blocks 13
sites vit_tiny_patch16_224 --num-classes 0
sites vit_tiny_patch16_224 --num-classes -3
sites vit_tiny_patch16_224 --num-classes 1.5
sites vit_tiny_patch16_224 --checkpoint missing.pth
sites vit_tiny_patch16_224 --checkpoint a.png
sites vit_tiny_patch16_224 resnet50
sweep
sweep missing.yaml
sweep a.png
sweep folder
sweep sweep.yaml --workers 0
sweep sweep.yaml --workers -1
sweep sweep.yaml --workers two
sweep sweep.yaml --workers 0 --plan
sweep sweep.yaml --engine slurm
sweep sweep.yaml --address host:1
sweep sweep.yaml --cpus-per-run 0
sweep sweep.yaml --gpus-per-run -1
sweep sweep.yaml --device mps
sweep sweep.yaml --device tpu
sweep sweep.yaml --output a.png
sweep sweep.yaml --output run
sweep sweep.yaml --output folder --table
sweep sweep.yaml --root
data
data imagenet
data vtab1k --from nowhere
data vtab1k --from zip
data vtab1k --archive a.png
data vtab1k --from zip --archive missing.zip
data vtab1k --from zip --archive a.png
data vtab1k --tasks no_such_task
demo --device mps
demo --device tpu
demo --output
demo --output a.png
demo extra
backbones extra
no-such-command
"""


@pytest.mark.parametrize("line", mostly_slow([(line,) for line in COMMANDS.strip().splitlines()]))
def test_a_command_that_makes_no_sense_is_refused(
    line: str, run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert main(line.split()) == 2
    captured = capfd.readouterr()
    assert captured.out.count("\n") <= 1  # what it is about
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before
