"""One run on several processes is the run of one process, written and told once."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import small_runs
import timm
import torch
from accelerate import PartialState
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn

from sensitune._processes import Processes
from sensitune.allocation import Allocation, random_allocation
from sensitune.data import DataSettings, ImageTransform, load_data
from sensitune.errors import ArgumentError, SensituneError
from sensitune.runs import Run, RunConfig, _launch
from sensitune.sensitivity import Sensitivity
from sensitune.sites import outline_model
from sensitune.training import Recipe, TrainingProgress, _sharding, check_enough_images, evaluate, train
from sensitune.tuner import SptConfig
from sensitune_command import main

# Nothing random within a batch; batches of 5 of 21 images, which neither two nor three processes can cut evenly, and
# the last of which holds one image alone.
pytestmark = pytest.mark.timeout(300)
QUIET = Recipe(epochs=4, batch_size=5, learning_rate=3e-3, warmup_share=0.25, dropout=0.0, drop_path=0.0)
SETTINGS = [
    *("--model", "vit_tiny_patch16_224", "--backbone.no-pretrained", "--backbone.image-size", "32"),
    *("--backbone.num-blocks", "2", "--rank", "4", "--device", "cpu", "--budget", "9_000"),
    *("--sensitivity.num-batches", "3", "--sensitivity.batch-size", "4", "--epochs", "2", "--batch-size", "5"),
    *("--recipe.dropout", "0", "--recipe.drop-path", "0"),
]
TRANSFORM = ImageTransform(image_size=32)
INTERRUPTED_AT = 7


class Interrupted(Exception):
    """Somebody pulled the plug."""


def tuned_in_float64() -> PeftModel:
    """A small ViT with LoRAs, vectors, sparse values and a token that train, and a parameter that nothing reads."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32, depth=2).double().eval()
    model.register_forward_pre_hook(lambda module, inputs: (inputs[0].double(),))
    allocation = random_allocation(outline_model(model), budget=9_000, rank=4, seed=0)
    tuned = get_peft_model(model, SptConfig.from_allocation(allocation, dropout=0.0, drop_path=0.0))
    assert isinstance(tuned, PeftModel)
    tuned.base_model.model.pooler = nn.Parameter(torch.ones(3, dtype=torch.float64))
    return tuned


def trained(
    images: str, folder: Path, recipe: Recipe = QUIET, *, stop_at: int | None = None, sharded: bool = False
) -> list[float]:
    """The losses of its epochs."""

    def pull_the_plug(progress: TrainingProgress) -> None:
        if progress.step == stop_at:
            raise Interrupted

    data, model = load_data(DataSettings(images, test=True)), tuned_in_float64()
    with contextlib.suppress(Interrupted):
        result = train(
            *(model, data, recipe, folder),
            transform=TRANSFORM,
            device="cpu",
            sharded=sharded,
            progress=pull_the_plug,
        )
        return [each.train_loss for each in result.metrics]
    return []


ONE_STEP_EPOCHS = dataclasses.replace(QUIET, epochs=10, batch_size=64)


def sentence(act: Any) -> str:
    try:
        act()
    except SensituneError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def work(images: str, folder: Path) -> None:
    """One of the processes."""
    PartialState(cpu=True)
    rank, count = Processes.found().rank, Processes.found().count
    said, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(told):
        command = ["run", *SETTINGS, "--data", images, "--output", str(folder / "run")]
        codes = [main(command), main([*command, "--budget", "7_000"]), main(["predict", "adapter", "photo.jpg"])]
        codes.append(main(["evaluate", str(folder / "run")]))
    found: dict[str, Any] = {"codes": codes, "said": said.getvalue(), "told": told.getvalue().splitlines()}
    found["losses"] = trained(images, folder / "losses")
    found["first losses"] = trained(images, folder / "first", ONE_STEP_EPOCHS)
    if count == 2:
        trained(images, folder / "many then one", stop_at=INTERRUPTED_AT)
        found["one then many"] = trained(images, folder / "one then many")
        found["sharded"] = trained(images, folder / "sharded", sharded=True)
        trained(images, folder / "sharded then one", stop_at=INTERRUPTED_AT, sharded=True)
        found["one then sharded"] = trained(images, folder / "one then sharded", sharded=True)
        found["share"] = share_of_weights()
        data = load_data(DataSettings(images))
        found["answers"] = evaluate(tuned_in_float64(), data.dataset["train"], TRANSFORM, batch_size=5).loss
        found["refusals"] = refusals(images, folder, rank)
    (folder / f"{rank}.json").write_text(json.dumps(found))


def share_of_weights() -> float:
    """What part of a model's scalars a process holds once it is shared out."""
    model = tuned_in_float64()
    whole = sum(parameter.numel() for parameter in model.parameters())
    _sharding.shard(model, torch.device("cpu"))
    return sum(parameter.to_local().numel() for parameter in model.parameters()) / whole  # type: ignore[operator]


def refusals(images: str, folder: Path, rank: int) -> list[str]:
    """What processes that do not go together say, which only the second could know."""
    config = RunConfig.from_yaml(folder / "run" / "run.yaml")
    other = dataclasses.replace(config, seed=rank)
    older = {"python": "3.11.0", "torch": f"2.{14 + rank}"}
    with mock.patch.object(_launch, "surroundings", return_value=older):
        versions = sentence(lambda: Run.open(folder / "other", config))
    with mock.patch.object(_launch, "_SEEN_WITHIN", 0.1):
        apart = sentence(lambda: _launch.check_processes(folder / "run" if rank == 0 else folder / "nowhere", {}))
        with mock.patch.object(_launch, "_appears", return_value=rank == 0):
            unseen = sentence(lambda: _launch.check_processes(folder / "run", {}))
    failing = sentence(lambda: Processes.found().together(lambda: check_first_alone(rank)))
    return [
        versions,
        sentence(lambda: Run.open(folder / "other", other)),
        apart,
        unseen.replace(str(folder), "FOLDER"),
        sentence(lambda: check_enough_images(1)),
        failing,
    ]


def check_first_alone(rank: int) -> None:
    if rank:
        raise SensituneError("The disk of the second one is full.")


def launched(images: Path, folder: Path, count: int) -> list[dict[str, Any]]:
    """What each of several processes has found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = os.pathsep.join([str(Path(small_runs.__file__).parent), os.environ.get("PYTHONPATH", "")])
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    environment = os.environ | shared | {"MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, str(images), str(folder)],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        for worker in workers:
            _, errors = worker.communicate(timeout=250)
            assert worker.returncode == 0, errors
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(count)]


@pytest.fixture(scope="module")
def alone(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of it all, and a training that was interrupted twice."""
    folder = tmp_path_factory.mktemp("alone")
    assert main(["run", *SETTINGS, "--data", str(images), "--output", str(folder / "run")]) == 0
    losses = {
        "losses": trained(str(images), folder / "losses"),
        "first losses": trained(str(images), folder / "first", ONE_STEP_EPOCHS),
    }
    (folder / "losses.json").write_text(json.dumps(losses))
    return folder


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def many(
    request: pytest.FixtureRequest, images: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
    folder = tmp_path_factory.mktemp("many")
    for name in ("one then many", "one then sharded"):
        trained(str(images), folder / name, stop_at=INTERRUPTED_AT)
    return folder, launched(images, folder, request.param)


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_scores_are_those_of_one_process_and_the_placement_is_identical(
    alone: Path, many: tuple[Path, list[dict[str, Any]]]
) -> None:
    folder, _ = many
    expected, found = (Sensitivity.load(each / "run" / "sensitivity.safetensors") for each in (alone, folder))
    for name, score in expected.scores.items():
        torch.testing.assert_close(found.scores[name], score, rtol=1e-5, atol=1e-9)
    placed, ours = (Allocation.load(each / "run" / "allocation.safetensors") for each in (alone, folder))
    assert (ours.structured, ours.vectors, ours.tau) == (placed.structured, placed.vectors, placed.tau)
    assert ours.sparse.keys() == placed.sparse.keys()
    assert all(torch.equal(ours.sparse[site], indices) for site, indices in placed.sparse.items())


def test_the_trained_run_is_that_of_one_process(alone: Path, many: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, found = many
    weights = "run/adapter/adapter_model.safetensors"
    expected, ours = load_file(alone / weights), load_file(folder / weights)
    for name, tensor in expected.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-5)
    for before, now in zip(metrics(alone / "run"), metrics(folder / "run"), strict=True):
        assert now["train_loss"] == pytest.approx(before["train_loss"], rel=1e-4)
        assert now["validation_accuracy"] == before["validation_accuracy"]
    result = json.loads((folder / "run" / "training.json").read_text())
    assert result["num_processes"] == len(found)
    left = sorted(each.name for each in (folder / "run").iterdir())
    assert left == sorted([*(each.name for each in (alone / "run").iterdir()), "evaluation.json"])


def test_the_first_losses_in_float64_are_those_of_one_process(
    alone: Path, many: tuple[Path, list[dict[str, Any]]]
) -> None:
    expected = json.loads((alone / "losses.json").read_text())
    for found in many[1]:
        assert len(found["first losses"]) == 10  # of one step each
        assert found["first losses"] == pytest.approx(expected["first losses"], rel=1e-5)
        assert found["losses"] == pytest.approx(expected["losses"], rel=1e-5)


def test_one_process_speaks_and_all_end_alike(many: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, found = many
    assert all(each["codes"] == [0, 2, 2, 0] for each in found)
    said = [each["said"] for each in found]
    assert "SPT-LoRA" in said[0]
    assert "test accuracy" in said[0]
    assert said[1:] == [""] * (len(found) - 1)
    budget, predict = [line for each in found for line in each["told"] if line.startswith("error:")]
    told = {budget, predict}
    assert any("`--budget` is 9000, not 7000." in line for line in told)
    assert any(line.startswith("error: `sensitune predict` is for one process, and") for line in told)
    assert not list(folder.rglob(".*")), "locks and notes are gone"


def test_a_training_goes_on_with_another_number_of_processes(
    images: Path, alone: Path, many: tuple[Path, list[dict[str, Any]]]
) -> None:
    folder, found = many
    if len(found) != 2:
        pytest.skip("two processes have shown it")
    expected = json.loads((alone / "losses.json").read_text())["losses"]
    for each in found:
        assert each["one then many"] == pytest.approx(expected, rel=1e-5)
    assert trained(str(images), folder / "many then one") == pytest.approx(expected, rel=1e-5)
    resumed = json.loads((folder / "many then one" / "training.json").read_text())
    assert (resumed["resumed_after"], resumed["num_processes"]) == (1, 1)


def test_weights_that_are_shared_out_train_alike_and_are_saved_whole(
    images: Path, alone: Path, many: tuple[Path, list[dict[str, Any]]]
) -> None:
    folder, found = many
    if len(found) != 2:
        pytest.skip("two processes have shown it")
    expected = json.loads((alone / "losses.json").read_text())["losses"]
    for each in found:
        assert each["sharded"] == pytest.approx(expected, rel=1e-5)
        assert each["one then sharded"] == pytest.approx(expected, rel=1e-5)
        assert each["share"] == pytest.approx(0.5, abs=0.01)
    assert trained(str(images), folder / "sharded then one") == pytest.approx(expected, rel=1e-5)
    for name in ("adapter", "adapter_chosen"):
        whole, ours = (
            load_file(each / name / "adapter_model.safetensors") for each in (alone / "losses", folder / "sharded")
        )
        assert whole.keys() == ours.keys()
        for tensor, value in whole.items():
            torch.testing.assert_close(ours[tensor], value, rtol=1e-5, atol=1e-8)
    before, now = (
        (each / "adapter" / "adapter_config.json").read_bytes() for each in (alone / "losses", folder / "sharded")
    )
    assert before == now


def test_what_processes_evaluate_together_is_what_one_does(
    images: Path, many: tuple[Path, list[dict[str, Any]]]
) -> None:
    expected = evaluate(tuned_in_float64(), load_data(DataSettings(str(images))).dataset["train"], TRANSFORM)
    for each in many[1]:
        if "answers" in each:
            assert each["answers"] == pytest.approx(expected.loss, rel=1e-6)


def test_processes_that_do_not_go_together_say_so_all(many: tuple[Path, list[dict[str, Any]]]) -> None:
    node = _launch.platform.node()
    for each in many[1]:
        if "refusals" not in each:
            continue
        versions, settings, apart, unseen, images, failing = each["refusals"]
        assert versions == (
            f"ProcessError: Process 1 on {node} has torch 2.15, and Process 0 on {node} has 2.14. Install the same "
            "versions everywhere."
        )
        assert settings.startswith("ProcessError: `seed` is 0 in process 0 and 1 in process 1. Start every process")
        assert apart == "", "the first one's folder is the one that counts, wherever the others believe it to be"
        assert unseen == (
            f"RunFolderError: Process 1 on {node} does not see FOLDER/run, where process 0 on {node} writes. Put the "
            "run's folder on storage that every node sees under the same path."
        )
        assert images.startswith("DataError: 2 processes cannot share 1 training images")
        assert failing == "SensituneError: The disk of the second one is full."


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("sharded", [False, True])
def test_two_gpus_make_the_run_of_one_process(images: Path, alone: Path, tmp_path: Path, sharded: bool) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "sensitune", "run"]
    options = [*SETTINGS, "--device", "cuda", "--recipe.precision", "float32", "--data", str(images)]
    options += ["--output", str(tmp_path / "run"), *(["--compute.sharded"] if sharded else [])]
    subprocess.run([*launcher, *options], check=True)
    assert json.loads((tmp_path / "run" / "training.json").read_text())["num_processes"] == 2
    expected, found = (Sensitivity.load(each / "run" / "sensitivity.safetensors") for each in (alone, tmp_path))
    for name, score in expected.scores.items():
        torch.testing.assert_close(found.scores[name], score, rtol=1e-3, atol=1e-8)
    for before, now in zip(metrics(alone / "run"), metrics(tmp_path / "run"), strict=True):
        assert now["train_loss"] == pytest.approx(before["train_loss"], rel=1e-2)


@pytest.mark.parametrize(
    ("asked", "what"), [("DEEPSPEED", r"DeepSpeed \(ZeRO\)"), ("FSDP", "accelerate's own FSDP settings")]
)
def test_a_launcher_that_asks_for_another_way_to_share_the_weights_is_refused(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    asked: str,
    what: str,
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{asked}", "true")
    sentence = rf"The launcher asks for {what}, which is not supported. .*use `--compute.sharded` \(FSDP2\)"
    with pytest.raises(ArgumentError, match=sentence):
        trained(str(images), tmp_path / "python")
    assert main(["run", *SETTINGS, "--data", str(images), "--output", str(tmp_path / "run")]) == 2
    assert "`--compute.sharded` (FSDP2)" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [], "nothing is written"


if __name__ == "__main__":
    work(sys.argv[1], Path(sys.argv[2]))
