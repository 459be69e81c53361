"""Budgets can be written as people write them."""

from __future__ import annotations

from typing import Any

import pytest

from sensitune.allocation._budget import parse_budget
from sensitune.errors import BudgetError


@pytest.mark.parametrize(
    ("budget", "params"),
    [
        (400_000, 400_000),
        ("400000", 400_000),
        ("400_000", 400_000),
        ("400,000", 400_000),
        ("400k", 400_000),
        ("0.4M", 400_000),
        ("0.4m", 400_000),
        ("1.1M", 1_100_000),
        ("0.002B", 2_000_000),
        (" 0.5% ", 428_993),
        ("0.29%", 248_816),
    ],
)
def test_a_budget_is_a_number_a_multiple_or_a_share(budget: int | str, params: int) -> None:
    assert parse_budget(budget, 85_798_656) == params


@pytest.mark.parametrize("budget", ["many", "", "M", "%", "nan", "inf%", "1e", True, 0.5, None])
def test_anything_else_is_refused(budget: Any) -> None:
    with pytest.raises(BudgetError, match=r"`budget` must be a whole number, or text such as .* Got "):
        parse_budget(budget, 1000)


def test_a_fraction_of_a_parameter_is_refused() -> None:
    with pytest.raises(BudgetError, match=r"must be a whole number of parameters. Got '0.0015k', which is 1.5"):
        parse_budget("0.0015k", 1000)
