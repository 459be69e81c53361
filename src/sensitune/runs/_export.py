"""A run's adapter as plain LoRA; where something had to be left out, with what that costs in accuracy."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel

from sensitune.errors import ArgumentError, SensituneError
from sensitune.runs._reporter import Reporter, Silent
from sensitune.runs._run import Run
from sensitune.runs._settings import DeviceName
from sensitune.runs._use import recorded_checkpoint
from sensitune.training import AdapterManifest, evaluate, load_tuned
from sensitune.tuner.plain_lora import LoraExport, export_lora


@dataclass(frozen=True)
class AdapterExport:
    """What became of a run's adapter.

    Attributes:
        lora: What was written, and what was left out.
        accuracy_before: Test accuracy of the adapter, in [0, 1]; None where nothing was left out, or none was measured.
        accuracy_after: Test accuracy of what was written.
        not_measured: Why the accuracies are missing although something was left out; None where they are not.
    """

    lora: LoraExport
    accuracy_before: float | None = None
    accuracy_after: float | None = None
    not_measured: str | None = None


def export(
    adapter: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    uniform_rank: bool = False,
    allow_dropping: bool = False,
    device: DeviceName | None = None,
    reporter: Reporter | None = None,
) -> AdapterExport:
    """Write an adapter of a run as a plain LoRA, as `sensitune.export_lora` does.

    The manifest goes with it, so that `predict`, `merge` and this package's other commands take the new folder too.

    Args:
        adapter: An adapter folder of a run.
        output: The adapter folder to write.
        checkpoint: The base's weight file, if it has moved or the adapter has left its run folder.
        uniform_rank: As in `export_lora`.
        allow_dropping: As in `export_lora`. If something is left out, the accuracy on the run's test split is measured
            before and after, where the run's data is at hand.
        device: Where it is measured; None is the run's own setting.
        reporter: Is told where it stands.

    Returns:
        What was written, what was left out, and the accuracies.

    Raises:
        ArgumentError: If `output` is the adapter itself.
    """
    if Path(adapter).resolve() == Path(output).resolve():
        raise ArgumentError(f"`output` must be another folder than the adapter. Got {os.fspath(output)} for both.")
    model, manifest = load_tuned(adapter, checkpoint=checkpoint or recorded_checkpoint(adapter))
    lora = export_lora(model, output, uniform_rank=uniform_rank, allow_dropping=allow_dropping)
    manifest.save(output)
    if not lora.dropped:
        return AdapterExport(lora)
    try:
        before, after = _accuracies(Path(adapter), model, manifest, lora.folder, device, reporter or Silent())
    except (SensituneError, OSError) as error:  # the data may be anywhere, or gone
        return AdapterExport(lora, not_measured=str(error))
    return AdapterExport(lora, before, after)


def _accuracies(
    adapter: Path,
    model: PeftModel,
    manifest: AdapterManifest,
    exported: Path,
    device: DeviceName | None,
    reporter: Reporter,
) -> tuple[float, float]:
    run = Run.load(adapter.resolve().parent, device=device)
    splits = run.ingredients.all_data.dataset
    if "test" not in splits:
        raise ArgumentError("The run's data has no test split.")

    def accuracy(tuned: PeftModel) -> float:
        return evaluate(
            tuned,
            splits["test"],
            manifest.transform,
            batch_size=run.config.recipe.batch_size,
            device=run.config.compute.device,
            precision=run.config.recipe.precision,
            num_workers=run.config.compute.num_workers,
            progress=reporter.step,
        ).accuracy

    reporter.stage("Testing the adapter")
    before = accuracy(model)
    reporter.stage("Testing what was exported")
    return before, accuracy(load_tuned(exported, backbone=run.ingredients.fresh_backbone())[0])
