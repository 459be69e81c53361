"""``sensitune demo``: the whole method on a real model and real photographs, from installed packages alone."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from sensitune._installed import need
from sensitune.backbones import FOCUS_NAME, BackboneSpec, load_backbone
from sensitune.cli._arguments import parse
from sensitune.cli._console import make_console, reporting, show_path
from sensitune.cli._pages import write_comparison, write_run_page
from sensitune.cli._run import comparison_row
from sensitune.data import DataSettings
from sensitune.report import allocation_table, comparison_table, write_report
from sensitune.runs import ComputeSettings, DeviceName, Run, RunConfig, compare, comparing, merge, open_image, predict
from sensitune.training import AdapterManifest, Recipe, predict_probabilities

# All the demo's numbers. On 2 CPU cores the model trains some 36 images a second: 500 images x 6 epochs x 4 methods.
UNIFORM_RANK = 2
SETTINGS = RunConfig(
    BackboneSpec(FOCUS_NAME, image_size=98, num_blocks=6),
    DataSettings("demo", max_train=500, max_test=500),
    # Too short a run for stochastic depth to pay.
    recipe=Recipe(epochs=6, warmup_share=1 / 6, batch_size=16, learning_rate=2e-3, drop_path=0.0),
)


def main(arguments: Sequence[str]) -> None:
    """Run the subcommand."""
    parse(demo, arguments, command="demo")


def demo(*, output: Path = Path("runs/demo"), device: DeviceName = "auto") -> None:
    """Tune a saliency-tuned DINOv2 ViT-S/14 on photographs of solar cells, and compare four ways to spend the budget.

    Head only, uniform LoRA, SPT-LoRA (preset best) and SPT sparse only, the last three at the same number of trainable
    parameters; one seed. Everything comes from installed packages, nothing is downloaded.

    Args:
        output: Folder for everything that is written. The same command goes on where it stopped.
        device: Where it runs.
    """
    need("page", what="The demo")  # which writes one when all is computed
    console = make_console()
    started = time.perf_counter()
    settings = replace(SETTINGS, compute=ComputeSettings(device=device))
    console.print(_introduction(settings))
    with comparing(output):
        _demo(console, settings, output)
    console.print(f"Finished in {(time.perf_counter() - started) / 60:.1f} minutes.")


def _demo(console: Console, settings: RunConfig, output: Path) -> None:
    with reporting(console, always=True) as reporter:
        compared = compare(settings, output, uniform_rank=UNIFORM_RANK, reporter=reporter)
    spt = next(one for one in compared if one.config.method.name == "spt-lora")
    _show_report(console, compared, spt, output)
    merged = merge(spt.folder.training.adapter, output / "spt-lora-merged.safetensors")
    _show_predictions(console, spt, merged)
    show_path(console, "SPT-LoRA adapter", spt.folder.training.adapter)
    show_path(console, "merged checkpoint", merged)
    show_path(console, "everything else", output)
    show_path(console, "side by side", _write_comparison(compared, output))
    show_path(console, "open in a browser", write_run_page(spt))


def _write_comparison(compared: Sequence[Run], output: Path) -> Path:
    command = f"sensitune view {shlex.quote(str(output))}"
    return write_comparison([one.folder.path for one in compared], output / "comparison.html", command)


def _introduction(settings: RunConfig) -> str:
    backbone, data, recipe = settings.backbone, settings.data, settings.recipe
    return (
        f"{backbone.name}, its first {backbone.num_blocks} blocks, at {backbone.image_size} px; photographs of solar "
        f"cells (elpv-dataset, CC BY-NC-SA): {data.max_train} to train, {data.max_test} to test; "
        f"{recipe.epochs} epochs; one seed ({settings.seed})."
    )


def _show_report(console: Console, compared: Sequence[Run], spt: Run, output: Path) -> None:
    rows = [comparison_row(one) for one in compared]
    allocation = spt.allocation()
    assert allocation is not None
    written = write_report(output, allocation, sensitivity=spt.sensitivity(), comparison=rows)
    console.print(allocation_table(allocation))
    console.print(comparison_table(rows))
    console.print(
        "Uniform LoRA, SPT-LoRA (preset best) and SPT sparse only train the same number of parameters. One seed is one "
        "draw: differences of a point or two between methods mean nothing here. The same photographs are a task of the "
        "accuracy suite, which compares more methods over eleven tasks with intervals: docs/accuracy.md."
    )
    for path in written:
        show_path(console, "written", path)


def _show_predictions(console: Console, spt: Run, merged: Path) -> None:
    """Some test photographs, as the adapter sees them; the merged checkpoint must see the same."""
    files, labels = _test_files(spt)
    predictions = predict(spt.folder.training.adapter, files, device=spt.config.compute.device)
    spec = BackboneSpec(FOCUS_NAME, checkpoint=str(merged))
    plain = load_backbone(spec, num_classes=len(predictions.class_names), keep_head=True).model
    transform = AdapterManifest.load(spt.folder.training.adapter).transform
    again = predict_probabilities(plain, map(open_image, files), transform, device=spt.config.compute.device)
    for index, (file, label) in enumerate(zip(files, labels, strict=True)):
        name, probability = predictions.best(index)
        console.print(f"{file.name}: {name} ({probability:.0%}); the label says {predictions.class_names[label]}")
    difference = (again - predictions.probabilities).abs().max()
    console.print(f"The merged checkpoint gives the same probabilities to {difference:.0e}.")


def _test_files(run: Run) -> tuple[list[Path], list[int]]:
    """The first test photograph of every class."""
    from datasets import Image

    test = run.ingredients.data.dataset["test"]
    labels = list(test["label"])
    first = [labels.index(label) for label in sorted(set(labels))]
    paths = test.cast_column("image", Image(decode=False))
    return [Path(paths[index]["image"]["path"]) for index in first], [labels[index] for index in first]
