"""Names that PEFT matches with one module each.

PEFT takes a list of target modules as names or suffixes, a text as a regular expression for whole names, and the keys
of `rank_pattern` as regular expressions for suffixes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping


def exact_targets(names: Collection[str], others: Iterable[str]) -> list[str] | str:
    """`target_modules` that match some modules and no other.

    Args:
        names: Full names of the modules.
        others: Names of the model's other modules, as far as they are known.

    Returns:
        The names. Where one could be the end of another module's name, which is so for a name without a dot even if no
        such module is known, a regular expression.
    """
    rest = set(others) - set(names)
    suffixes = tuple(f".{name}" for name in names)
    if all("." in name for name in names) and not any(name.endswith(suffixes) for name in rest):
        return sorted(names)
    return "|".join(re.escape(name) for name in sorted(names))


def exact_pattern(values: Mapping[str, float], default: float) -> dict[str, float]:
    """A `rank_pattern` or `alpha_pattern` that gives each module its value.

    Args:
        values: Full name of each tuned module -> its value.
        default: The value of modules that the pattern leaves out.

    Returns:
        Key -> value: the name where it matches no other tuned module, else an expression that is anchored at the start.
    """
    return {
        name if _means_itself(name, values) else f"^{re.escape(name)}": value
        for name, value in values.items()
        if value != default
    }


def _means_itself(key: str, names: Iterable[str]) -> bool:
    """Whether PEFT matches a key with the module of that name alone, as `peft.utils.other.get_pattern_key` does."""
    if not re.fullmatch(r"[\w.-]+", key):
        return False
    return [name for name in names if re.match(rf"(.*\.)?({key})$", name)] == [key]


def taken_along(saved: Iterable[str], modules: Collection[str]) -> tuple[str, str] | None:
    """A name in `modules_to_save` and another module that PEFT would save with it, or None.

    PEFT takes the names as ends of names, dot or no dot.

    Args:
        saved: Full names of the modules that are meant.
        modules: Names of the model's modules, as far as they are known.

    Returns:
        The first such pair.
    """
    pairs = ((name, module) for name in saved for module in sorted(modules))
    return next(((name, module) for name, module in pairs if module != name and module.endswith(name)), None)
