"""What an adapter folder carries beside PEFT's files: enough to predict with it, and to refuse another base."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors import SafetensorError

from sensitune._files import atomic_write
from sensitune.backbones import BackboneSpec, load_backbone
from sensitune.data import ImageTransform
from sensitune.errors import AdapterFileError, AllocationMismatchError, ConfigError

CARD_NAME = "sensitune.json"


@dataclass(frozen=True)
class AdapterCard:
    """How to build the model an adapter belongs to, and what its outputs mean.

    Attributes:
        backbone: What the base model is built from.
        weights_hash: `sensitune.backbones.weights_hash` of the base model.
        class_names: Name of every class id.
        transform: How images become tensors, without augmentation.
        notes: Anything else worth keeping, JSON-ready: method, seed, data, versions.
    """

    backbone: BackboneSpec
    weights_hash: str
    class_names: tuple[str, ...]
    transform: ImageTransform
    notes: Mapping[str, Any] = field(default_factory=dict)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``sensitune.json`` into an adapter folder.

        Args:
            folder: The adapter folder.
        """
        values = {
            "backbone": self.backbone.to_dict(),
            "weights_hash": self.weights_hash,
            "class_names": list(self.class_names),
            "transform": self.transform.for_evaluation().to_dict(),
            "notes": dict(self.notes),
        }
        with atomic_write(Path(folder) / CARD_NAME) as temporary:
            temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> AdapterCard:
        """Read what `save` wrote.

        Args:
            folder: The adapter folder.

        Returns:
            The card.

        Raises:
            AdapterFileError: If the folder has no card, or a damaged one.
        """
        path = Path(folder) / CARD_NAME
        if not path.is_file():
            raise AdapterFileError(
                f"{os.fspath(folder)} is not an adapter folder of a Sensitune run: it has no {CARD_NAME}. "
                "Give the `adapter` folder of a run."
            )
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                backbone=BackboneSpec.from_dict(values["backbone"]),
                weights_hash=values["weights_hash"],
                class_names=tuple(values["class_names"]),
                transform=ImageTransform.from_dict(values["transform"]),
                notes=values["notes"],
            )
        except (json.JSONDecodeError, KeyError, TypeError, ConfigError) as error:
            raise AdapterFileError(f"{path} is damaged: {error}. Train again, or restore the file.") from error


def load_tuned(
    folder: str | os.PathLike[str], *, checkpoint: str | os.PathLike[str] | None = None
) -> tuple[PeftModel, AdapterCard]:
    """Build the tuned model again from its adapter folder alone, plus its base weights.

    Args:
        folder: An adapter folder that `train` wrote with a card.
        checkpoint: The base weights, where they have moved since; None takes what the card names.

    Returns:
        The PEFT model in eval mode on the CPU, and its card.

    Raises:
        AdapterFileError: If the folder is not an adapter folder, or a damaged one.
        AllocationMismatchError: If the base weights are not those the adapter was tuned on.
    """
    card = AdapterCard.load(folder)
    spec = card.backbone if checkpoint is None else replace(card.backbone, checkpoint=os.fspath(checkpoint))
    # A base without pretrained weights is drawn from the run's seed.
    backbone = load_backbone(spec, num_classes=len(card.class_names), seed=int(card.notes.get("seed", 0)))
    if backbone.weights_hash != card.weights_hash:
        raise AllocationMismatchError(
            f"{os.fspath(folder)} was tuned on {card.backbone.name} with weights {card.weights_hash[:12]}. "
            f"Got weights {backbone.weights_hash[:12]}. Give the `checkpoint` it was tuned on."
        )
    try:
        return PeftModel.from_pretrained(backbone.model, os.fspath(folder)).eval(), card
    except SafetensorError as error:
        raise AdapterFileError(f"The weights in {os.fspath(folder)} are damaged: {error}. Train again.") from error
