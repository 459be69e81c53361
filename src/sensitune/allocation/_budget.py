"""Budgets as people write them."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import TypeAlias

from sensitune._schema import shorten
from sensitune.errors import BudgetError
from sensitune.sites import ModelOutline

Budgets: TypeAlias = list[int] | list[str] | list[int | str] | tuple[int | str, ...]

# Between digits only every third place may be marked: a slip such as '1_0%' or '4,00' is no number.
_TEXT = re.compile(
    r"[-+]?(?:\d+|\d{1,3}(?:_\d{3})+|\d{1,3}(?:,\d{3})+)?(?:\.\d+)?(?:e[-+]?\d{1,2})? ?[kmb%]?", re.A | re.I
)
_LARGEST = 10**15
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
        return _small(budget)
    if not isinstance(budget, str):
        raise BudgetError(_unreadable(budget))
    if not _TEXT.fullmatch(budget.strip()):
        raise BudgetError(_unreadable(budget))
    text = budget.strip().replace("_", "").replace(",", "").lower()
    if text.endswith("%"):
        return _small(int(_number(text[:-1], budget) * backbone_params / 100))
    unit = _UNITS.get(text[-1:], 1)
    number = _number(text[:-1] if unit > 1 else text, budget) * unit
    if number != int(number):
        raise BudgetError(f"`budget` must be a whole number of parameters. Got {budget!r}, which is {number}.")
    return _small(int(number))


def read_budgets(budget: int | str | Budgets, outline: ModelOutline) -> list[int]:
    """One budget or several as numbers, checked.

    Args:
        budget: As in `allocate`.
        outline: The model.

    Returns:
        At least one budget; each pays at least for what is always trained.

    Raises:
        BudgetError: If a budget cannot be read or is below that, or there is none.
    """
    given = budget if isinstance(budget, (list, tuple)) else [budget]
    if not given:
        raise BudgetError("`budget` must hold at least one budget. Got an empty list.")
    budgets = [parse_budget(one, outline.backbone_params) for one in given]
    always = outline.always_trained_params
    least = f"{always:,} parameters ({_always_reason(outline)})" if always else "1 parameter"
    for one in budgets:
        if one < max(always, 1):
            raise BudgetError(f"`budget` must be at least {least}. Got {one:,}.")
    return budgets


def read_budget(budget: int | str, outline: ModelOutline) -> int:
    """`read_budgets` for one."""
    return read_budgets(budget, outline)[0]


def check_maximum(budget: int, usable: int, user: str, *, way_out: str = "Lower `budget`.") -> None:
    """Refuse a budget above what can be used.

    Args:
        budget: What there is to spend.
        usable: What can be spent, with what is always trained.
        user: On what, for the message.
        way_out: What to do about it.

    Raises:
        BudgetError: If it is above.
    """
    if budget > usable:
        raise BudgetError(f"`budget` {budget:,} exceeds what {user} can use ({usable:,}). {way_out}")


def _always_reason(outline: ModelOutline) -> str:
    names = [name.rpartition(".")[2] for name in outline.always_trained]
    if names == ["cls_token"]:
        return "the class token is always trained"
    return f"{', '.join(names)} {'are' if len(names) > 1 else 'is'} always trained"


def _number(text: str, budget: str) -> Decimal:
    try:
        number = Decimal(text)
    except InvalidOperation:
        raise BudgetError(_unreadable(budget)) from None
    if not number.is_finite():
        raise BudgetError(_unreadable(budget))
    return number


def _small(budget: int) -> int:
    if abs(budget) >= _LARGEST:
        raise BudgetError(f"`budget` must be below {_LARGEST:,} parameters. Got {shorten(budget)}.")
    return budget


def _unreadable(budget: object) -> str:
    return (
        f"`budget` must be a whole number, or text such as '400_000', '400k', '0.4M' or '0.5%'. Got {shorten(budget)}."
    )
