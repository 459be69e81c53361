"""Advice: a placement where the scores say one, "uniform is fine" where they are flat or change with the batches."""

from __future__ import annotations

from dataclasses import replace

import pytest
from advised import Model, of, scores
from peft import get_peft_model

from sensitune.advice import advise
from sensitune.errors import ArgumentError


def test_scores_in_few_layers_are_a_placement() -> None:
    advice = of([1, 1, 9, 1, 1, 8, 1, 1])
    assert sorted(advice.plan.ranks) == ["body.2", "body.5"]
    assert advice.focus == pytest.approx((17 / 23) / (2 / 8))
    assert advice.verdict == "place"
    assert advice.sentence == (
        "Place it: the chosen modules hold 3.0 times the score that their size would give them, "
        "and 2 of 2 modules stay under resampling."
    )


def test_flat_scores_say_that_uniform_is_fine() -> None:
    advice = of([1.0] * 8)
    assert advice.focus == pytest.approx(1)
    assert advice.verdict == "flat"
    assert advice.sentence.startswith("Uniform is fine here: the scores are flat")


def test_a_placement_that_the_batches_make_says_that_uniform_is_fine() -> None:
    advice = of([9, 8, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 8.5, 9.5])
    assert (advice.stability.modules, advice.stability.modules_kept) == (2, 0)
    assert advice.verdict == "unstable"
    assert advice.sentence == (
        "Uniform is fine here: the placement depends on the batches (0 of 2 modules stay under resampling)."
    )


def test_the_costs_are_those_of_what_peft_trains() -> None:
    advice = of([1, 1, 9, 1, 1, 8, 1, 1])
    tuned = get_peft_model(Model(), advice.plan.config)
    trained = sum(parameter.numel() for parameter in tuned.parameters() if parameter.requires_grad)
    assert advice.adapter_bytes == 4 * trained
    assert advice.optimizer_bytes == 8 * trained
    assert advice.step_arithmetic == pytest.approx(1 + 2 * 3 * 4 * 32 / (8 * 2 * 256))


def test_scores_without_halves_are_refused() -> None:
    with pytest.raises(ArgumentError, match="keep_halves"):
        advise(replace(scores([1.0] * 8, [1.0] * 8), halves=None), budget=256)
