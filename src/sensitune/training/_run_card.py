"""The model card of an adapter that a run trained: base, data, where the parameters went, accuracy, how to predict."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from peft import PeftConfig

from sensitune._markdown import code, escape, table
from sensitune.backbones import FOCUS_NAME, PUBLISHED_BACKBONES, BackboneSpec, of_transformers
from sensitune.training._manifest import MANIFEST_NAME, AdapterManifest, AdapterOrigin
from sensitune.training._recipe import Recipe
from sensitune.training._result import TrainingFolder, TrainingResult
from sensitune.tuner import ModelCard, SptConfig, adapter_card, read_adapter_config

_SHOWN_CLASSES = 50


def write_card(
    root: str | os.PathLike[str], weights: Literal["last", "chosen"], *, recipe: Recipe, result: TrainingResult
) -> None:
    """Write the model card of a trained PEFT adapter, from its folder and its numbers.

    Args:
        root: The run's folder.
        weights: Whose card: that of the last epoch's weights, or of the chosen one's.
        recipe: How it was trained.
        result: What came of it.
    """
    folder = TrainingFolder(Path(root))
    adapter = folder.adapter if weights == "last" else folder.chosen_adapter
    manifest = AdapterManifest.load(adapter) if (adapter / MANIFEST_NAME).is_file() else None
    _TrainedAdapter(read_adapter_config(adapter), recipe, result, manifest).card(weights).write(adapter)


@dataclass(frozen=True)
class _TrainedAdapter:
    """What is known of an adapter at the end of its training.

    Attributes:
        config: The adapter's PEFT configuration.
        recipe: How it was trained.
        result: What came of it.
        manifest: What it belongs to; None if nobody said.
    """

    config: PeftConfig
    recipe: Recipe
    result: TrainingResult
    manifest: AdapterManifest | None = None

    def card(self, weights: Literal["last", "chosen"]) -> ModelCard:
        """The model card: what the configuration knows, and the run around it.

        Args:
            weights: Whether the folder holds the last epoch's weights or the chosen one's.

        Returns:
            The card.
        """
        plain = adapter_card(self.config)
        (placement, where), (use, loading) = plain.sections.items()
        accuracy = {"Accuracy": self._accuracy(weights)}
        manifest = self.manifest
        if manifest is None:
            return replace(plain, sections={placement: where, **accuracy, use: loading})
        origin = manifest.origin
        return replace(
            plain,
            title=f"{escape(self._method(origin))} on {escape(_data_name(origin.data))}",
            summary=f"{plain.summary} {_counts(origin)}",
            sections={
                "Base model": _base(manifest),
                "Data": _data(manifest),
                placement: where,
                **accuracy,
                use: _predicting(manifest) + _loading(loading, manifest),
            },
            metadata={"pipeline_tag": "image-classification", **_base_model(manifest.backbone)},
            packages=(*plain.packages, "timm", "transformers"),
        )

    def _method(self, origin: AdapterOrigin) -> str:
        """What the run calls its method; the type of one of PEFT's own, which all go by one name there."""
        kind = self.config.peft_type
        return origin.method if isinstance(self.config, SptConfig) else str(getattr(kind, "value", kind))

    def _accuracy(self, weights: Literal["last", "chosen"]) -> str:
        result = self.result
        rows = [("last", result.last_epoch, result.validation_accuracy_last, result.test_accuracy_last)]
        if result.chosen_epoch is not None and self.recipe.validate == "epochs":
            chosen = result.chosen_epoch, result.validation_accuracy_chosen, result.test_accuracy_chosen
            rows.append(("chosen", *chosen))
        names = {"last": "last epoch", "chosen": "the epoch that the validation split chose"}
        headings = ["weights", "epoch", "validation", "test"]
        cells = [
            [
                names[name] + (" (these)" if name == weights or len(rows) == 1 else ""),
                str(epoch),
                _percent(validation),
                _percent(test),
            ]
            for name, epoch, validation, test in rows
        ]
        return "\n\n".join([table(headings, cells, numeric=headings[1:]), self._circumstances()])

    def _circumstances(self) -> str:
        recipe, result = self.recipe, self.result
        in_place = "" if recipe.in_place_rate == 1 else f" (tuned in place: {recipe.in_place_rate:g} times that)"
        noise = f"dropout {recipe.dropout:g}, drop-path {recipe.drop_path:g}"
        if result.frozen_features:
            noise = "the backbone as in evaluation"
        head = " The head started fitted to the frozen backbone's features." if recipe.head_start == "probe" else ""
        if recipe.epochs == 0:
            return f"One run, seed {result.seed}.{head} Nothing was trained after that."
        return (
            f"One run, seed {result.seed}: {recipe.epochs} epochs over {result.num_train_images:,} images in batches "
            f"of {recipe.batch_size}, AdamW at {recipe.learning_rate:g}{in_place}, weight decay "
            f"{recipe.weight_decay:g}, {noise}, {result.precision} on {result.device}.{head} Nothing was chosen on the "
            "test split, which is read once the training is over. Another seed can differ by a point or more."
        )


def _counts(origin: AdapterOrigin) -> str:
    trained, head = origin.trainable_params, origin.head_params
    share = f"{trained / origin.backbone_params:.2%} of the backbone's"
    return f"{trained:,} parameters were trained, {share}; {trained + head:,} with the new head."


def _base(manifest: AdapterManifest) -> str:
    spec = manifest.backbone
    published = PUBLISHED_BACKBONES.get(spec.name)
    lines = [f"Name: {code(spec.name)}", f"Weights: {_weights(manifest)}, SHA-256 {code(manifest.weights_hash)}"]
    if published:
        lines += [
            f"Pretraining: {escape(published.pretraining)}",
            f"Licence of the weights: {escape(published.licence)}",
        ]
    lines.append(f"Input: {manifest.transform.image_size} × {manifest.transform.image_size} pixels")
    if spec.num_blocks is not None:
        lines.append(f"Of its blocks the first {spec.num_blocks}")
    return _listed(lines)


def _weights(manifest: AdapterManifest) -> str:
    spec = manifest.backbone
    if spec.checkpoint is not None:
        return f"the {'folder' if of_transformers(spec) else 'file'} {code(spec.checkpoint)}"
    return "those of the name" if spec.pretrained else f"random, drawn with seed {manifest.origin.seed}"


def _data(manifest: AdapterManifest) -> str:
    data, names = manifest.origin.data, manifest.class_names
    shown = ", ".join(map(escape, names[:_SHOWN_CLASSES]))
    more = f", and {len(names) - _SHOWN_CLASSES} more" if len(names) > _SHOWN_CLASSES else ""
    lines = [f"Name: {escape(_data_name(data))}", f"Classes: {len(names)} ({shown}{more})"]
    if isinstance(sizes := data.get("split_sizes"), Mapping):
        lines.append(f"Images: {', '.join(f'{escape(split)} {escape(size)}' for split, size in sizes.items())}")
    if data.get("split"):
        lines.append(f"Splits: {escape(data['split'])}")
    if data.get("licence"):
        lines.append(f"Licence: {escape(data['licence'])}")
    return _listed(lines)


def _data_name(data: Mapping[str, Any]) -> str:
    name = data.get("benchmark") or data.get("source") or "unnamed data"
    return ", ".join(map(str, name)) if isinstance(name, (list, tuple)) else str(name)


def _predicting(manifest: AdapterManifest) -> str:
    file = manifest.backbone.checkpoint
    python = f", checkpoint={file!r}" if file else ""
    command = f" --checkpoint {shlex.quote(file)}" if file else ""
    return f"""```python
import sensitune
from PIL import Image
from sensitune.training import load_tuned, predict_probabilities

model, manifest = load_tuned("path/to/this/folder"{python})
probabilities = predict_probabilities(model, [Image.open("picture.png")], manifest.transform)
print(manifest.class_names[int(probabilities[0].argmax())])
```

or, on the command line,

```sh
sensitune predict path/to/this/folder picture.png{command}
```
"""


def _loading(loading: str, manifest: AdapterManifest) -> str:
    return f"\nWith PEFT alone, on a base that has a head of {len(manifest.class_names)} outputs:\n\n{loading}"


def _base_model(spec: BackboneSpec) -> dict[str, str]:
    """The base on the model hub, if that is where its weights come from."""
    published = PUBLISHED_BACKBONES.get(spec.name)
    on_hub = published.on_hub if published else spec.name != FOCUS_NAME
    name = published.timm_name if published else spec.name
    if spec.checkpoint is not None or not spec.pretrained or not on_hub or ":" in name:
        return {}
    return {"base_model": name if of_transformers(spec) else f"timm/{name}"}


def _percent(accuracy: float | None) -> str:
    return "–" if accuracy is None else f"{accuracy:.1%}"


def _listed(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
