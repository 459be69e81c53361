from __future__ import annotations

import math

import pytest

from sensitune.errors import ArgumentError
from sensitune.training import Recipe
from sensitune.training._schedule import learning_rate_at


def test_the_defaults_are_the_vtab_recipe() -> None:
    recipe = Recipe()
    assert (recipe.learning_rate, recipe.weight_decay, recipe.batch_size, recipe.epochs) == (1e-3, 1e-4, 64, 100)
    assert (recipe.warmup_share, recipe.warmup_learning_rate, recipe.final_learning_rate) == (0.1, 1e-6, 1e-5)
    assert (recipe.dropout, recipe.drop_path, recipe.validate) == (0.1, 0.1, "epochs")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"learning_rate": 0.0}, r"`learning_rate` must be a number above 0 and at most 10\. Got 0\.0\."),
        ({"learning_rate": math.nan}, r"`learning_rate` must be a finite number\. Got nan\."),
        ({"weight_decay": math.inf}, r"`weight_decay` must be a finite number\. Got inf\."),
        ({"in_place_rate": -1.0}, r"`in_place_rate` must be a number of at least 0 and at most 1,000\. Got -1\.0\."),
        ({"epochs": 0}, r"`epochs` must be at least 1 where the head starts at random\. Got 0"),
        ({"batch_size": 2.5}, r"`batch_size` must be a whole number of at least 1\. Got 2\.5\."),
        ({"drop_path": 1.0}, r"`drop_path` must be a number of at least 0 and below 1\. Got 1\.0\."),
        ({"warmup_share": 1.0}, r"`warmup_share` must be a number of at least 0 and below 1\. Got 1\.0\."),
        ({"clip_grad_norm": 0.0}, r"`clip_grad_norm` must be a number above 0 or None\. Got 0\.0\."),
        ({"precision": "float16"}, r"`precision` must be one of auto, float32, bfloat16\. Got 'float16'\."),
        ({"validate": "never"}, r"`validate` must be one of epochs, end\. Got 'never'\."),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(setting: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Recipe(**setting)  # type: ignore[arg-type]


def test_the_learning_rate_climbs_a_line_and_falls_along_a_cosine() -> None:
    recipe = Recipe(epochs=10, warmup_share=0.2)
    rates = [learning_rate_at(step, steps_per_epoch=5, recipe=recipe) for step in range(51)]
    assert rates[0] == 1e-6
    assert rates[5] == pytest.approx((1e-6 + 1e-3) / 2)
    assert rates[10] == 1e-3
    assert rates[30] == pytest.approx((1e-3 + 1e-5) / 2)
    assert rates[50] == pytest.approx(1e-5)
    assert sorted(rates[:11]) == rates[:11]
    assert sorted(rates[10:], reverse=True) == rates[10:]


def test_no_warm_up_starts_at_the_peak() -> None:
    assert learning_rate_at(0, steps_per_epoch=3, recipe=Recipe(epochs=1, warmup_share=0)) == 1e-3


@pytest.mark.parametrize("epochs", [1, 3, 100])
def test_the_warm_up_is_a_tenth_of_any_training(epochs: int) -> None:
    rates = [learning_rate_at(step, steps_per_epoch=20, recipe=Recipe(epochs=epochs)) for step in range(20 * epochs)]
    assert rates.index(max(rates)) == 2 * epochs
