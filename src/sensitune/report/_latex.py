"""Pieces of LaTeX in which nothing from outside is markup."""

from __future__ import annotations

from sensitune._text import visible

_SIGNS = str.maketrans(
    {
        **{sign: "\\" + sign for sign in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "±": r"$\pm$",
        "×": r"$\times$",
        "–": "--",
    }
)


def escape_latex(text: str) -> str:
    """Plain text -> LaTeX."""
    return visible(text).translate(_SIGNS)


def latex_score(shown: str) -> str:
    """An accuracy; its deviation small, as two dozen columns must fit on a page."""
    mean, _, deviation = shown.partition(" ± ")
    return escape_latex(mean) + (rf"{{\scriptsize$\,\pm\,${deviation}}}" if deviation else "")
