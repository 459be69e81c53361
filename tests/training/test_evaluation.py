from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional

from sensitune.data import ImageData, ImageTransform, PreparedImages
from sensitune.errors import AdapterFileError, ArgumentError, DataError
from sensitune.training import evaluate, load_weights, predict_probabilities
from sensitune.training._weights import save_weights


class Colour(nn.Module):
    """The class is the channel with the largest mean."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.dropout(pixel_values.mean((2, 3)))


def test_evaluation_agrees_with_a_plain_loop(data: ImageData, transform: ImageTransform) -> None:
    split = data.dataset["test"]
    found = evaluate(Colour(), split, transform, batch_size=3, device="cpu")
    logits = torch.stack([transform(image).mean((1, 2)) for image in split["image"]])
    labels = torch.tensor(split["label"])
    assert found.num_images == 7
    assert found.predictions.tolist() == logits.argmax(1).tolist()
    assert found.accuracy == (logits.argmax(1) == labels).double().mean().item()
    assert found.loss == pytest.approx(functional.cross_entropy(logits, labels).item(), rel=1e-5)


def test_evaluation_leaves_training_flags_and_random_state_alone(data: ImageData, transform: ImageTransform) -> None:
    model = Colour().train()
    model.dropout.eval()
    state = torch.random.get_rng_state()
    evaluate(model, PreparedImages(data.dataset["test"], transform), device="cpu")
    assert model.training
    assert not model.dropout.training
    assert torch.equal(torch.random.get_rng_state(), state)


def test_evaluation_reports_its_progress(data: ImageData, transform: ImageTransform) -> None:
    seen: list[tuple[int, int | None]] = []
    evaluate(
        Colour(),
        data.dataset["test"],
        transform,
        batch_size=4,
        device="cpu",
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(4, 7), (7, 7)]


def test_an_empty_split_is_refused(data: ImageData, transform: ImageTransform) -> None:
    with pytest.raises(DataError, match="must hold at least one image"):
        evaluate(Colour(), data.dataset["test"].select([]), transform, device="cpu")


def test_a_split_without_a_transform_is_refused(data: ImageData) -> None:
    with pytest.raises(ArgumentError, match="`transform` must be given"):
        evaluate(Colour(), data.dataset["test"], device="cpu")


def test_probabilities_are_those_of_the_images_one_by_one(data: ImageData, transform: ImageTransform) -> None:
    images = data.dataset["test"]["image"]
    together = predict_probabilities(Colour(), images, transform, batch_size=3, device="cpu")
    alone = torch.cat([predict_probabilities(Colour(), [image], transform, device="cpu") for image in images])
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(together.sum(1), torch.ones(7))


def test_no_images_have_no_probabilities(transform: ImageTransform) -> None:
    with pytest.raises(DataError, match="at least one image to predict"):
        predict_probabilities(Colour(), [], transform, device="cpu")


def test_weights_of_another_adapter_are_refused(tmp_path: Path) -> None:
    wide = get_peft_model(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), LoraConfig(r=2, target_modules=["0", "1"]))
    narrow = get_peft_model(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), LoraConfig(r=2, target_modules=["0"]))
    save_weights(wide, tmp_path / "wide")
    with pytest.raises(AdapterFileError, match="does not fit the model"):
        load_weights(narrow, tmp_path / "wide")


def test_a_failed_save_leaves_the_older_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    model = nn.Linear(2, 2)
    save_weights(model, tmp_path / "weights")
    before = (tmp_path / "weights" / "trained.safetensors").read_bytes()
    monkeypatch.setattr("sensitune.training._weights.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_weights(model, tmp_path / "weights")
    assert (tmp_path / "weights" / "trained.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]
