"""What a model said of its test images, kept and read again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from sensitune._tensor_file import save_tensor_file
from sensitune.data import ImageData, ImageTransform
from sensitune.errors import AdapterFileError
from sensitune.training import Answers, evaluate
from sensitune.training._answers import _Content

IDS = torch.tensor([0, 1, 2, 1], dtype=torch.int32)
SURE = torch.tensor([0.5, 0.9, 0.7, 0.9])


def test_confidences_are_the_probabilities_of_the_predictions(data: ImageData, transform: ImageTransform) -> None:
    class Constant(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)[:, : data.num_classes]

    split = data.dataset["test"]
    found = evaluate(Constant(), split, transform, batch_size=2, device="cpu", precision="float32")
    assert found.labels.tolist() == list(split["label"])
    logits = torch.stack([transform.for_evaluation()(row["image"]).flatten()[: data.num_classes] for row in split])
    expected = logits.double().softmax(1)
    assert torch.equal(found.predictions, expected.argmax(1))
    torch.testing.assert_close(found.confidences, expected.amax(1).float())


def test_answers_are_read_as_they_were_written(tmp_path: Path) -> None:
    written = Answers(IDS, IDS.roll(1), SURE, num_classes=3)
    written.save(tmp_path / "a.safetensors")
    found = Answers.load(tmp_path / "a.safetensors")
    assert found.num_classes == 3
    for name in ("labels", "predictions", "confidences"):
        assert torch.equal(getattr(found, name), getattr(written, name))
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert sum(file.get_tensor(name).nbytes for name in file.keys()) == 12 * 4  # noqa: SIM118


def test_the_most_confident_mistakes_come_first(tmp_path: Path) -> None:
    answers = Answers(IDS, torch.tensor([1, 0, 2, 2], dtype=torch.int32), SURE, num_classes=3)
    assert answers.confident_mistakes(12) == [1, 3, 0]  # 2 is right; ties in the split's order
    assert answers.confident_mistakes(1) == [1]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"labels": IDS.long()}, "must be torch.int32 of one dimension"),
        ({"confidences": SURE * 2}, "must hold probabilities"),
        ({"labels": IDS[:3]}, "one of each an image"),
        ({"predictions": IDS + 1}, "names a class beyond its 3"),
    ],
)
def test_what_are_no_answers_is_refused(changes: dict[str, torch.Tensor], complaint: str, tmp_path: Path) -> None:
    tensors = {"labels": IDS, "predictions": IDS.clone(), "confidences": SURE} | changes
    path = tmp_path / "a.safetensors"
    save_tensor_file(path, tensors, kind="answers", content=_Content(3))
    with pytest.raises(AdapterFileError, match=complaint):
        Answers.load(path)
