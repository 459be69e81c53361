"""Where the head alone trains, the backbone sees every image once, and the result is that of seeing it every epoch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

from sensitune.allocation import uniform_allocation
from sensitune.data import ImageData, ImageTransform
from sensitune.sites import outline_model
from sensitune.training import Recipe, TrainingProgress, TrainingResult, evaluate, load_weights, train
from sensitune.training._features import features_of, head_that_trains_alone
from sensitune.tuner import SptConfig

RECIPE = Recipe(epochs=4, batch_size=4, learning_rate=1e-2)
IMAGE = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
Train = Callable[..., TrainingResult]


class Interrupted(Exception):
    """Somebody pulled the plug."""


def head_only(base: nn.Module) -> PeftModel:
    allocation = uniform_allocation(outline_model(base), structured=None, train_tokens=False)
    return get_peft_model(base, SptConfig.from_allocation(allocation))


@pytest.fixture
def make_probe(make_base: Callable[[], nn.Module]) -> Callable[[], PeftModel]:
    """Builds the same model, with drop-path in its blocks, of which the head alone trains."""
    return lambda: head_only(make_base())


@pytest.fixture
def run(data: ImageData, transform: ImageTransform, tmp_path: Path) -> Train:
    def start(model: nn.Module, name: str = "run", recipe: Recipe = RECIPE, **options: Any) -> TrainingResult:
        return train(model, data, recipe, tmp_path / name, **({"transform": transform, "device": "cpu"} | options))

    return start


def count_images(model: PeftModel) -> list[int]:
    """Sizes of the batches that the backbone will see."""
    seen: list[int] = []
    patches = model.base_model.model.patch_embed
    patches.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    return seen


def head_of(model: PeftModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


def test_the_result_is_that_of_the_slow_way(make_probe: Callable[[], PeftModel], run: Train) -> None:
    fast_model, slow_model = make_probe(), make_probe()
    fast, slow = run(fast_model, "fast"), run(slow_model, "slow", cache_bytes=0)
    assert (fast.frozen_features, slow.frozen_features) == (True, False)
    for one, other in zip(fast.metrics, slow.metrics, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, abs=1e-6)
        assert one.validation_loss == pytest.approx(other.validation_loss, abs=1e-6)
        assert (one.validation_accuracy, one.learning_rate) == (other.validation_accuracy, other.learning_rate)
    assert fast.chosen_epoch == slow.chosen_epoch
    assert (fast.test_accuracy_last, fast.test_accuracy_chosen) == (slow.test_accuracy_last, slow.test_accuracy_chosen)
    expected = head_of(slow_model)
    for name, value in head_of(fast_model).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-6)


def test_the_result_is_that_of_a_plain_loop_over_features(
    make_probe: Callable[[], PeftModel], run: Train, data: ImageData, transform: ImageTransform
) -> None:
    """One batch holds all images, so that their order does not matter; a constant rate keeps the loop plain."""
    recipe = replace(RECIPE, batch_size=14, warmup_share=0.0, final_learning_rate=1e-2, weight_decay=0.0)
    model, reference = make_probe(), make_probe().base_model.model.eval()
    result = run(model, recipe=recipe)
    pixels = torch.stack([transform(image) for image in data.dataset["train"]["image"]])
    labels = torch.tensor(data.dataset["train"]["label"])
    with torch.no_grad():
        features = reference.forward_head(reference.forward_features(pixels), pre_logits=True)
    head = reference.head.modules_to_save["default"]
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2, weight_decay=0.0)
    for row in result.metrics:
        loss = nn.functional.cross_entropy(head(features), labels)
        assert row.train_loss == pytest.approx(loss.item(), abs=1e-6)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_the_backbone_sees_every_image_once(make_probe: Callable[[], PeftModel], run: Train) -> None:
    model = make_probe()
    seen = count_images(model)
    run(model)
    tried = [1, 1]  # how many outputs there are, and whether they are the head's
    assert seen == [*tried, *(4, 4, 4, 2), *(4, 2), *(4, 3)]


@pytest.mark.parametrize(
    "changes",
    [{"cache_bytes": 0}, {"recipe": replace(RECIPE, mixup=0.5)}, {"transform": ImageTransform(16, augment=True)}],
)
def test_images_that_change_or_do_not_fit_are_seen_in_every_epoch(
    make_probe: Callable[[], PeftModel], run: Train, changes: dict[str, Any]
) -> None:
    model = make_probe()
    seen = count_images(model)
    assert not run(model, **changes).frozen_features
    assert sum(seen) >= 4 * (14 + 6)


def test_a_backbone_that_no_one_trains_works_as_in_evaluation(
    make_probe: Callable[[], PeftModel], run: Train, transform: ImageTransform
) -> None:
    """Also where the images change: drop-path in it would blur what the head reads."""
    with_drop_path, without = make_probe(), make_probe()
    for block in without.base_model.model.blocks:
        block.drop_path1 = block.drop_path2 = nn.Identity()
    augmented = replace(transform, augment=True)
    first, second = (
        run(model, str(index), transform=augmented) for index, model in enumerate((with_drop_path, without))
    )
    assert [row.train_loss for row in first.metrics] == [row.train_loss for row in second.metrics]


def test_dropout_in_the_head_itself_is_kept(make_probe: Callable[[], PeftModel], run: Train) -> None:
    def with_dropout() -> PeftModel:
        model = make_probe()
        wrapper = model.base_model.model.head.modules_to_save
        wrapper["default"] = nn.Sequential(nn.Dropout(0.5), wrapper["default"])
        return model

    plain, dropped = run(make_probe(), "plain"), run(with_dropout(), "dropped")
    slow = run(with_dropout(), "slow", cache_bytes=0)
    assert dropped.frozen_features
    assert [row.train_loss for row in dropped.metrics] != [row.train_loss for row in plain.metrics]
    losses = [row.train_loss for row in slow.metrics]
    assert [row.train_loss for row in dropped.metrics] == pytest.approx(losses, abs=1e-6)


def test_what_trains_in_the_backbone_needs_the_backbone(make_model: Callable[[], PeftModel], run: Train) -> None:
    model = make_model()
    seen = count_images(model)
    assert not run(model).frozen_features
    assert sum(seen) >= 4 * (14 + 6)


def test_an_interrupted_run_goes_on_with_the_same_features(make_probe: Callable[[], PeftModel], run: Train) -> None:
    def pull_the_plug(progress: TrainingProgress) -> None:
        if progress.step == 9:
            raise Interrupted

    whole_model, resumed_model = make_probe(), make_probe()
    whole = run(whole_model, "whole")
    with pytest.raises(Interrupted):
        run(make_probe(), "resumed", progress=pull_the_plug)
    resumed = run(resumed_model, "resumed")
    assert (resumed.resumed_after, resumed.frozen_features) == (2, True)
    assert [row.train_loss for row in resumed.metrics] == [row.train_loss for row in whole.metrics]
    expected = head_of(whole_model)
    assert all(torch.equal(value, expected[name]) for name, value in head_of(resumed_model).items())


def test_the_saved_adapter_is_that_of_the_whole_model(
    make_probe: Callable[[], PeftModel], run: Train, data: ImageData, transform: ImageTransform, tmp_path: Path
) -> None:
    result = run(make_probe())
    for folder, accuracy in (("adapter", result.test_accuracy_last), ("adapter_chosen", result.test_accuracy_chosen)):
        fresh = make_probe()
        load_weights(fresh, tmp_path / "run" / folder)
        assert evaluate(fresh, data.dataset["test"], transform, device="cpu").accuracy == accuracy


def test_a_plain_module_may_train_its_head_alone_too(make_base: Callable[[], nn.Module], run: Train) -> None:
    model = make_base().requires_grad_(False)
    model.head.requires_grad_(True)
    assert run(model).frozen_features


# peft 0.21.2 reads a property that transformers 5.23 has renamed.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_the_head_of_a_transformers_model_is_found(run: Train) -> None:
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=16, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    config.num_labels = 3
    config.hidden_dropout_prob = 0.5
    assert run(head_only(ViTForImageClassification(config))).frozen_features


def test_an_answer_that_is_not_the_heads_is_told(make_base: Callable[[], nn.Module]) -> None:
    class Doubled(nn.Module):
        def __init__(self, base: nn.Module) -> None:
            super().__init__()
            self.base = base

        def get_classifier(self) -> nn.Module:
            return self.base.head

        def forward(self, pixel_values: Tensor) -> Tensor:
            return 2 * self.base(pixel_values)

    base = make_base().requires_grad_(False)
    base.head.requires_grad_(True)
    found = head_that_trains_alone(base, IMAGE)
    assert found is not None
    assert found[0] is base.head
    assert found[1] == 16 * 4
    assert head_that_trains_alone(Doubled(base), IMAGE) is None


def test_features_are_what_the_head_reads(make_base: Callable[[], nn.Module]) -> None:
    model = make_base().train()
    images = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    found = features_of(model, model.head, [(images[:3], torch.arange(3)), (images[3:], torch.arange(2))])
    assert model.training
    with torch.no_grad():
        expected = model.eval().forward_head(model.forward_features(images), pre_logits=True)
    torch.testing.assert_close(found.features, expected)
    assert found.labels.tolist() == [0, 1, 2, 0, 1]
    assert len(found) == 5
    assert torch.equal(found[4]["pixel_values"], found.features[4])
