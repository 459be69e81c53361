"""A model of which plain LoRA sees the matrices alone: what PEFT can put a LoRA on, and a server can add."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from sensitune.errors import ArgumentError, ModelError
from sensitune.sensitivity import Sensitivity
from sensitune.sites import ModelOutline, Site

_NO_MATRIX = "not a matrix, so no LoRA stands for its change"


def matrices_alone(outline: ModelOutline) -> ModelOutline:
    """The same model with its matrices ranked and all else frozen, the class token included.

    Args:
        outline: The model.

    Returns:
        The outline.

    Raises:
        ModelError: If no ranked site is a matrix.
    """
    matrices = tuple(site for site in outline.sites if site.kind == "matrix")
    if not matrices:
        raise ModelError(
            "The model has no linear layer that can be ranked, and a LoRA needs one. Tune it with `allocate` instead."
        )
    others = [site.id for site in outline.sites if site.kind != "matrix"] + list(outline.always_trained)
    return replace(
        outline, sites=matrices, always_trained={}, frozen=dict(outline.frozen) | dict.fromkeys(others, _NO_MATRIX)
    )


def servable_part(sensitivity: Sensitivity, structured: str | None) -> Sensitivity:
    """The same scores for what plain LoRA can say.

    Args:
        sensitivity: The scores.
        structured: What matrices get, as in `allocate`.

    Returns:
        The scores of the matrices, with nothing always trained.

    Raises:
        ArgumentError: If matrices get Adapters.
        ModelError: If no ranked site is a matrix.
    """
    if structured == "adapter":
        raise ArgumentError("`servable` leaves no room for Adapters, which are not linear. Take `structured='lora'`.")
    return replace(sensitivity, outline=matrices_alone(sensitivity.outline))


def as_peft_sees_it(sensitivity: Sensitivity, allowed: Sequence[str] | None) -> Sensitivity:
    """The same scores with the modules as sites that PEFT's LoRA can be put on; a fused q, k, v is one of them.

    Args:
        sensitivity: The scores, of whichever sites.
        allowed: Which modules, as in `lora_allocation`.

    Returns:
        The scores. A fused matrix of which a part is not ranked is left out: PEFT could not spare that part.

    Raises:
        ArgumentError: If a name in `allowed` is that of no module.
        ModelError: If no ranked site is a matrix.
    """
    outline = matrices_alone(sensitivity.outline)
    sites = list(_select(list(_joined(sensitivity, outline.sites)), allowed))
    return replace(sensitivity, outline=replace(outline, sites=tuple(sites)))


def _joined(sensitivity: Sensitivity, sites: Iterable[Site]) -> Iterator[Site]:
    slices: dict[str, list[Site]] = {}
    for site in sites:
        slices.setdefault(site.parameter, []).append(site)
    for parameter, found in slices.items():
        first = found[0]
        if first.rows is None:
            yield first
            continue
        whole = replace(
            first,
            id=parameter,
            rows=None,
            shape=tuple(sensitivity.scores[parameter].shape),
            operation=first.module.rpartition(".")[2],
        )
        if sum(site.out_features for site in found) == whole.out_features:
            yield whole


def _select(sites: Sequence[Site], allowed: Sequence[str] | None) -> Iterator[Site]:
    if allowed is None:
        yield from sites
        return
    if isinstance(allowed, str) or not allowed:
        raise ArgumentError(f"`allowed` must be a list of names, or None for every matrix. Got {allowed!r}.")
    for name in allowed:
        if not any(_is_called(site, name) for site in sites):
            known = ", ".join(dict.fromkeys(site.module.rpartition(".")[2] for site in sites))
            raise ArgumentError(f"`allowed` names '{name}', which is no matrix of the model. It has: {known}.")
    yield from (site for site in sites if any(_is_called(site, name) for name in allowed))


def _is_called(site: Site, name: str) -> bool:
    own = site.module.rpartition(".")[2]
    return name in {site.operation, own} or fnmatch.fnmatchcase(site.module, name)
