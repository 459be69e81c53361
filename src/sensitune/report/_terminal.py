"""Pieces of a terminal's output in which nothing from outside is markup or obeyed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sensitune._text import visible

if TYPE_CHECKING:
    from rich.text import Text


def terminal_text(text: str, style: str = "") -> Text:
    """Plain text -> what rich draws as it stands.

    Args:
        text: Of any origin.
        style: rich's name of a style.

    Returns:
        The text.
    """
    from rich.text import Text

    return Text(visible(text), style=style)
