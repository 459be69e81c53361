"""Which places of a model share one parameter.

A *module* that several parents hold is one place with several names: whatever is done to it, all of them see it. A
*parameter* that several modules hold, or one module under several names, is tied: a change at one place alone would be
unknown to the others until a merge brought it to all.
"""

from __future__ import annotations

from torch import nn


def all_names(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Every name of every parameter.

    Args:
        model: Any module.

    Returns:
        The name in ``model.named_parameters()`` -> all names, that one first.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {found[0]: tuple(found) for found in names.values()}


def tied_places(model: nn.Module) -> dict[int, tuple[str, ...]]:
    """The parameters that are tied.

    Args:
        model: Any module.

    Returns:
        ``id`` of the parameter -> its name at each of the places that hold it, of which there are two or more.
    """
    places: dict[int, list[str]] = {}
    for prefix, module in model.named_modules():
        for own, parameter in module._parameters.items():
            if parameter is not None:
                places.setdefault(id(parameter), []).append(f"{prefix}.{own}".lstrip("."))
    return {held: tuple(names) for held, names in places.items() if len(names) > 1}
