"""The pass computes what the definition says, for every kind of batch and model."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from typing import Any, get_args

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import (
    BatchEncoding,
    BertConfig,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    ViTConfig,
    ViTForImageClassification,
)

import sensitune.sensitivity
from sensitune.sensitivity import CriterionName, Sensitivity, estimate_sensitivity
from sensitune.sensitivity._accumulator import Accumulator
from sensitune.sensitivity._criteria import CRITERIA, GRADIENT_CRITERIA
from sensitune.sensitivity._store import MemoryStore
from sensitune.sensitivity._weights import weights_of
from sensitune.sites import outline_model

Batches = list[tuple[torch.Tensor, torch.Tensor]]


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 2 * width)
        self.drop = nn.Dropout(0.5)
        self.fc2 = nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.fc2(self.drop(functional.gelu(self.fc1(self.norm(x)))))
        return x + y


class Classifier(nn.Module):
    def __init__(self, width: int = 6, classes: int = 3) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.head = nn.Linear(width, classes)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.blocks(x))
        return logits


@pytest.fixture
def model() -> Classifier:
    return Classifier().double()


@pytest.fixture
def batches() -> Batches:
    return [(torch.randn(size, 6, dtype=torch.float64), torch.randint(3, (size,))) for size in (5, 4, 7)]


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: g if g is not None else torch.zeros_like(named[name]) for name, g in zip(named, found, strict=True)}


def per_batch(model: nn.Module, losses: list[Callable[[], torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
    """The full gradient of each batch's mean loss, in eval mode."""
    model.eval()
    return [gradients(model, loss()) for loss in losses]


def cross_entropies(model: nn.Module, batches: Batches) -> list[Callable[[], torch.Tensor]]:
    return [lambda x=x, y=y: functional.cross_entropy(model(x), y) for x, y in batches]  # type: ignore[misc]


def estimate(model: nn.Module, batches: Any, **options: Any) -> Sensitivity:
    return estimate_sensitivity(model, batches, **{"score_dtype": torch.float64, **options})


def assert_scores(sensitivity: Sensitivity, expected: dict[str, torch.Tensor], rtol: float = 1e-9) -> None:
    for name, score in sensitivity.scores.items():
        torch.testing.assert_close(score, expected[name].to(score.dtype), rtol=rtol, atol=1e-18)


CONTRIBUTIONS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "squared_gradient": lambda w, g: g**2,
    "weight_gradient": lambda w, g: (w * g).abs(),
    "gradient_over_weight": lambda w, g: g.abs() / w.abs().clamp(min=1e-8),
}


@pytest.mark.parametrize("criterion", CONTRIBUTIONS)
def test_the_contributions_of_the_batches_add_up(model: Classifier, batches: Batches, criterion: str) -> None:
    found = per_batch(model, cross_entropies(model, batches))
    weights = dict(model.named_parameters())
    expected = {name: sum(CONTRIBUTIONS[criterion](weights[name], g[name]) for g in found) for name in weights}
    assert_scores(estimate(model, batches, criterion=criterion), expected)  # type: ignore[arg-type]


def test_only_ranked_parameters_are_scored(model: Classifier, batches: Batches) -> None:
    sensitivity = estimate(model, batches)
    assert set(sensitivity.scores) == {name for name, _ in model.named_parameters() if not name.startswith("head")}
    assert sensitivity.outline == outline_model(model)


def test_the_default_type_of_the_scores_is_float32(model: Classifier, batches: Batches) -> None:
    assert {score.dtype for score in estimate_sensitivity(model, batches).scores.values()} == {torch.float32}


@pytest.mark.parametrize("score_device", ["cpu", torch.device("cpu")])
def test_scores_kept_on_a_device_are_the_same(model: Classifier, batches: Batches, score_device: Any) -> None:
    assert_scores(estimate(model, batches, score_device=score_device), dict(estimate(model, batches).scores), rtol=0)


def test_the_scores_are_kept_where_they_are_asked_to_be(model: Classifier) -> None:
    weights = weights_of(model, dict(model.named_parameters()))
    store = MemoryStore(torch.device("meta"))
    accumulator = Accumulator(model, weights, GRADIENT_CRITERIA["squared_gradient"], torch.float32, store)
    assert {score.device.type for sums in accumulator.sums for score in sums.values()} == {"meta"}


@pytest.mark.parametrize("tau", [500, 5_000])
def test_scores_kept_in_bfloat16_select_nearly_the_same(tau: int) -> None:
    torch.manual_seed(0)
    model = Classifier(width=96)
    batches = [(torch.randn(8, 96), torch.randint(3, (8,))) for _ in range(16)]

    def selected(score_dtype: torch.dtype) -> set[int]:
        scores = estimate_sensitivity(model, batches, score_dtype=score_dtype).scores
        order = torch.cat([score.flatten() for score in scores.values()]).sort(descending=True, stable=True).indices
        return set(order[:tau].tolist())

    assert len(selected(torch.float32) & selected(torch.bfloat16)) >= 0.99 * tau


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3, 5, 100])
def test_micro_batches_do_not_change_the_meaning(model: Classifier, batches: Batches, micro_batch_size: int) -> None:
    whole, cut = estimate(model, batches), estimate(model, batches, micro_batch_size=micro_batch_size)
    assert_scores(cut, dict(whole.scores))
    assert cut.metadata["losses"] == pytest.approx(whole.metadata["losses"])


def test_large_parameters_are_folded_in_chunks(
    model: Classifier, batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = estimate(model, batches)
    monkeypatch.setattr("sensitune.sensitivity._accumulator._CHUNK", 5)
    assert_scores(estimate(model, batches), dict(whole.scores), rtol=0)


def test_a_gradient_is_freed_before_the_next_one_arrives(model: Classifier, batches: Batches) -> None:
    alive: list[int] = []

    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        loss = functional.cross_entropy(model(batch[0]), batch[1])
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(
                    lambda _: alive.append(sum(p.grad is not None for p in model.parameters()))
                )
        return loss

    estimate(model, batches[:1], loss_fn=loss_fn)
    assert alive
    assert max(alive) == 0


def test_num_batches_reads_that_many_and_not_one_more(model: Classifier, batches: Batches) -> None:
    stream = iter(batches)
    sensitivity = estimate(model, stream, num_batches=2)
    assert_scores(sensitivity, dict(estimate(model, batches[:2]).scores))
    assert next(stream) is batches[2]


def test_the_metadata_says_where_the_scores_come_from(model: Classifier, batches: Batches) -> None:
    metadata = estimate_sensitivity(model, batches, num_batches=2, micro_batch_size=3).metadata
    outline = outline_model(model)
    assert metadata["criterion"] == "squared_gradient"
    assert (metadata["num_batches"], metadata["num_samples"], metadata["batch_sizes"]) == (2, 9, [5, 4])
    assert metadata["losses"] == pytest.approx([loss().item() for loss in cross_entropies(model.eval(), batches[:2])])
    assert (metadata["micro_batch_size"], metadata["score_dtype"]) == (3, "float32")
    assert (metadata["model"], metadata["backbone_params"]) == ("Classifier", outline.backbone_params)
    assert metadata["without_gradient"] == []
    assert set(metadata["versions"]) == {"sensitune", "torch"}


def test_a_loss_function_takes_the_place_of_cross_entropy(model: Classifier, batches: Batches) -> None:
    found = per_batch(model, [lambda x=x: model(x).square().mean() for x, _ in batches])  # type: ignore[misc]
    expected = {name: sum(g[name] ** 2 for g in found) for name in found[0]}
    assert_scores(estimate(model, batches, loss_fn=lambda m, batch: m(batch[0]).square().mean()), expected)  # type: ignore[arg-type]


def test_batches_of_any_kind_reach_the_loss_function_unchanged(model: Classifier) -> None:
    seen: list[Any] = []

    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        seen.append(batch)
        return functional.cross_entropy(model(torch.ones(2, 6, dtype=torch.float64)), torch.tensor([0, 2]))

    encoding = BatchEncoding({"x": torch.ones(2)})
    sensitivity = estimate(model, ["text", encoding], loss_fn=loss_fn)
    assert [type(batch) for batch in seen] == [str, BatchEncoding]
    assert sensitivity.metadata["batch_sizes"] == [None, 2]


def test_class_probabilities_are_labels_too(model: Classifier, batches: Batches) -> None:
    soft = [(x, functional.one_hot(y, 3).float()) for x, y in batches]
    assert_scores(estimate(model, soft), dict(estimate(model, batches).scores))


def test_inputs_take_the_type_of_the_model(model: Classifier, batches: Batches) -> None:
    single = [(x.float().double(), y) for x, y in batches]
    expected = estimate(model, single)
    assert_scores(estimate(model, [(x.float(), y) for x, y in single]), dict(expected.scores))


def test_a_bfloat16_model_is_scored_in_float32(batches: Batches) -> None:
    model = Classifier().bfloat16()
    sensitivity = estimate_sensitivity(model, batches)
    found = per_batch(model, cross_entropies_in_float(model, batches))
    assert_scores(sensitivity, {name: sum(g[name].float() ** 2 for g in found) for name in found[0]}, rtol=1e-6)  # type: ignore[misc]
    assert {score.dtype for score in sensitivity.scores.values()} == {torch.float32}


def cross_entropies_in_float(model: nn.Module, batches: Batches) -> list[Callable[[], torch.Tensor]]:
    return [
        lambda x=x, y=y: functional.cross_entropy(model(x.bfloat16()).float(), y)  # type: ignore[misc]
        for x, y in batches
    ]


def test_a_bfloat16_score_takes_half_the_memory_and_ranks_alike(model: Classifier, batches: Batches) -> None:
    half = estimate(model, batches, score_dtype=torch.bfloat16).scores
    for name, score in estimate(model, batches).scores.items():
        torch.testing.assert_close(half[name].double(), score, rtol=0.02, atol=0)


def test_a_pass_inside_no_grad_works(model: Classifier, batches: Batches) -> None:
    expected = estimate(model, batches)
    with torch.no_grad():
        assert_scores(estimate(model, batches), dict(expected.scores))


def test_a_shared_layer_has_one_score(batches: Batches) -> None:
    model = Classifier().double()
    model.blocks[1].fc1 = model.blocks[0].fc1
    found = per_batch(model, cross_entropies(model, batches))
    sensitivity = estimate(model, batches)
    assert {name for name in sensitivity.scores if "fc1" in name} == {"blocks.0.fc1.weight", "blocks.0.fc1.bias"}
    assert_scores(sensitivity, {name: sum(g[name] ** 2 for g in found) for name in found[0]})  # type: ignore[misc]


@pytest.mark.filterwarnings("ignore:.*use_reentrant:UserWarning")
def test_gradients_that_arrive_in_pieces_are_refused(batches: Batches) -> None:
    class Checkpointed(Classifier):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.requires_grad_()
            for block in self.blocks:
                x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=True)
            logits: torch.Tensor = self.head(x)
            return logits

    model = Checkpointed().double()
    model.blocks[1].fc1 = model.blocks[0].fc1
    with pytest.raises(ValueError, match=r"`blocks.0.fc1.\w+` arrives in several pieces. .* `use_reentrant=False`"):
        estimate(model, batches)


def test_an_unused_parameter_scores_zero_and_is_named(
    model: Classifier, batches: Batches, caplog: pytest.LogCaptureFixture
) -> None:
    model.blocks.add_module("unused", nn.Linear(2, 2).double())
    model.blocks.forward = lambda x: model.blocks[1](model.blocks[0](x))  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING):
        sensitivity = estimate(model, batches)
    assert sensitivity.metadata["without_gradient"] == ["blocks.unused.weight", "blocks.unused.bias"]
    assert not sensitivity.scores["blocks.unused.weight"].any()
    assert "`blocks.unused.weight` had no gradient in the pass; its sensitivity is zero." in caplog.messages


def test_a_parameter_reached_by_some_micro_batches_only_is_scored_in_full(model: Classifier) -> None:
    class Routed(Classifier):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            deep, hidden = x[:, 0] > 0, self.blocks[:1](x)
            if bool(deep.any()):
                hidden[deep] = self.blocks[1:](hidden[deep])
            logits: torch.Tensor = self.head(hidden)
            return logits

    routed = Routed().double()
    x = torch.randn(4, 6, dtype=torch.float64)
    x[:, 0] = torch.tensor([1.0, 1.0, -1.0, -1.0])
    y = torch.tensor([0, 1, 2, 0])

    def loss() -> torch.Tensor:
        return sum(functional.cross_entropy(routed(x[i : i + 2]), y[i : i + 2]) for i in (0, 2)) / 2  # type: ignore[return-value]

    expected = {name: g**2 for name, g in per_batch(routed, [loss])[0].items()}
    assert_scores(estimate(routed, [(x, y)], micro_batch_size=2), expected)


def test_sites_limit_what_is_scored(model: Classifier, batches: Batches) -> None:
    chosen = [site for site in outline_model(model).sites if site.operation == "fc1"]
    sensitivity = estimate(model, batches, sites=chosen)
    assert set(sensitivity.scores) == {site.parameter for site in chosen}
    assert sensitivity.outline.frozen["blocks.0.fc2.weight"] == "left out by `sites`"
    assert_scores(sensitivity, dict(estimate(model, batches).scores))


def test_sites_may_name_what_is_frozen_by_default(batches: Batches) -> None:
    class WithStem(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(self.stem(x))

    model = WithStem().double()
    included = outline_model(model, include=["stem.*"]).sites
    assert "stem.weight" in outline_model(model).frozen
    sensitivity = estimate(model, batches, sites=included)
    assert bool(sensitivity.scores["stem.weight"].any())
    assert sensitivity.outline.frozen == {}


def test_magnitude_needs_no_data(model: Classifier) -> None:
    sensitivity = estimate(model, None, criterion="magnitude")
    assert_scores(sensitivity, {name: p.detach().abs() for name, p in model.named_parameters()})
    assert sensitivity.metadata["num_batches"] == 0


def test_random_scores_depend_on_the_seed_and_nothing_else(model: Classifier) -> None:
    def score(seed: int) -> torch.Tensor:
        return estimate(model, None, criterion="random", seed=seed).scores["blocks.0.fc1.weight"]

    first, state = score(1), torch.get_rng_state()
    torch.manual_seed(99)
    assert torch.equal(score(1), first)
    assert not torch.equal(score(2), first)
    assert bool((first > 0).all())
    torch.set_rng_state(state)
    assert estimate(model, None, criterion="random", seed=7).metadata["seed"] == 7


def test_the_table_of_criteria_is_complete() -> None:
    assert set(CRITERIA) == set(get_args(CriterionName))
    assert re.findall(r"^``(\w+)``", sensitune.sensitivity.__doc__ or "", re.MULTILINE) == list(CRITERIA)


def test_progress_is_reported_after_every_batch(model: Classifier, batches: Batches) -> None:
    calls: list[tuple[int, int | None]] = []
    estimate(model, batches, progress=lambda done, total: calls.append((done, total)))
    estimate(model, iter(batches), progress=lambda done, total: calls.append((done, total)))
    estimate(model, iter(batches), num_batches=1, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3), (1, None), (2, None), (3, None), (1, 1)]


def test_a_progress_bar_can_be_asked_for(
    model: Classifier, batches: Batches, capsys: pytest.CaptureFixture[str]
) -> None:
    estimate(model, batches, progress=True)
    assert "Sensitivity" in capsys.readouterr().out


def test_a_loader_without_a_length_is_read_to_its_end(model: Classifier, batches: Batches) -> None:
    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter(batches)

    loader = torch.utils.data.DataLoader(Stream(), batch_size=None)
    assert estimate(model, loader).metadata["num_batches"] == 3


def tiny_vit() -> ViTForImageClassification:
    config = ViTConfig(
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=8,
        patch_size=4,
        num_labels=3,
    )
    return ViTForImageClassification(config).double()


def test_a_dict_goes_to_a_transformers_model_with_its_own_loss() -> None:
    model = tiny_vit()
    batch = {"pixel_values": torch.randn(4, 3, 8, 8), "labels": torch.tensor([0, 2, 1, 1])}
    pair = (batch["pixel_values"], batch["labels"])
    by_dict, by_pair = estimate(model, [batch]), estimate(model, [pair])
    assert_scores(by_dict, dict(by_pair.scores))
    assert_scores(estimate(model, [batch], micro_batch_size=3), dict(by_dict.scores))


def test_token_labels_weigh_micro_batches_by_the_labels_that_count() -> None:
    config = BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
        num_labels=3,
    )
    model = BertForTokenClassification(config).double()
    labels = torch.randint(3, (4, 6))
    labels[0, 1:], labels[1, 3:], labels[3] = -100, -100, -100
    batch = BatchEncoding({"input_ids": torch.randint(20, (4, 6)), "labels": labels})
    expected = estimate(model, [batch])
    for micro_batch_size in (1, 2, 3):
        assert_scores(estimate(model, [batch], micro_batch_size=micro_batch_size), dict(expected.scores))


def test_a_decoder_weighs_micro_batches_by_the_tokens_it_predicts() -> None:
    config = GPT2Config(
        n_layer=1, n_embd=8, n_head=2, vocab_size=20, n_positions=16, bos_token_id=None, eos_token_id=None
    )
    model = GPT2LMHeadModel(config).double()
    tokens = torch.randint(20, (3, 6))
    labels = tokens.clone()
    labels[0, 2:], labels[1, :3] = -100, -100
    batch = {"input_ids": tokens, "labels": labels}
    expected = estimate(model, [batch])
    for micro_batch_size in (1, 2):
        cut = estimate(model, [batch], micro_batch_size=micro_batch_size)
        assert_scores(cut, dict(expected.scores), rtol=0.01)  # the model's own loss rounds to float32
