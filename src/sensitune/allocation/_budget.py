"""Budgets as people write them."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

from sensitune.errors import BudgetError

_UNITS = {"k": 1_000, "m": 1_000_000, "b": 1_000_000_000}


def parse_budget(budget: int | str, backbone_params: int) -> int:
    """The number of parameters that a budget means.

    Args:
        budget: A number of parameters (``400_000``), or text: ``"400_000"``, ``"400k"``, ``"0.4M"``, or ``"0.5%"``, a
            share of `backbone_params` rounded down.
        backbone_params: Number of scalars of the model without its head.

    Returns:
        The budget as a whole number of parameters.

    Raises:
        BudgetError: If the text cannot be read, or is not a whole number of parameters.
    """
    if isinstance(budget, int) and not isinstance(budget, bool):
        return budget
    if not isinstance(budget, str):
        raise BudgetError(_unreadable(budget))
    text = budget.strip().replace("_", "").replace(",", "").lower()
    if text.endswith("%"):
        return int(_number(text[:-1], budget) * backbone_params / 100)
    unit = _UNITS.get(text[-1:], 1)
    number = _number(text[:-1] if unit > 1 else text, budget) * unit
    if number != int(number):
        raise BudgetError(f"`budget` must be a whole number of parameters. Got {budget!r}, which is {number}.")
    return int(number)


def _number(text: str, budget: str) -> Decimal:
    try:
        number = Decimal(text)
    except InvalidOperation:
        raise BudgetError(_unreadable(budget)) from None
    if not number.is_finite():
        raise BudgetError(_unreadable(budget))
    return number


def _unreadable(budget: object) -> str:
    return f"`budget` must be a whole number, or text such as '400_000', '400k', '0.4M' or '0.5%'. Got {budget!r}."
