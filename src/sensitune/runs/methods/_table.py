"""The one table of methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from sensitune.allocation import (
    Allocation,
    StructuredType,
    check_layerwise_budget,
    check_neuron_budget,
    layerwise_allocation,
    neuron_allocation,
)
from sensitune.runs.methods._auto import AutoMethod
from sensitune.runs.methods._candidates import CANDIDATES
from sensitune.runs.methods._method import Method, Preset, PresetName
from sensitune.runs.methods._placed import (
    PlacedMethod,
    at_random,
    by_rule,
    by_sensitivity,
    everywhere,
    on_random_matrices,
    scattered,
    within_the_rule,
    within_what_spt_can_use,
)
from sensitune.runs.methods._stock import StockMethod
from sensitune.runs.methods._whole import WholeMethod
from sensitune.sensitivity import CriterionName
from sensitune.sites import ModelOutline

_THRESHOLDS = {"alpha": 10.0, "beta": 5.0}


def _presets(*, loras: bool) -> Mapping[PresetName, Preset]:
    """Settings of SPT by name; only LoRAs have a start."""
    starts = {"paper": {"lora_start": "random"}, "best": {"lora_start": "gradient"}} if loras else {}
    return {
        # He et al., ICCV 2023, section 4.1 and the authors' scripts.
        "paper": {"allocation": _THRESHOLDS | starts.get("paper", {}), "recipe": {"in_place_rate": 1.0}},
        # The two changes that did better on validation images (docs/accuracy.md); where parameters go is the paper's.
        "best": {"allocation": _THRESHOLDS | starts.get("best", {}), "recipe": {"in_place_rate": 0.1}},
    }


def _spt(
    name: str, label: str, structured: StructuredType | None, *, default_preset: PresetName | None = None
) -> Method:
    """A method of the paper's."""
    loras = structured == "lora"
    takes = {"budget", "tau"} if structured == "adapter" else {"budget", "tau", "servable"}
    return PlacedMethod(
        name=name,
        label=label,
        takes=frozenset(takes | {"lora_start"} if loras else takes),
        follows_scores=True,
        place=by_sensitivity(structured),
        fits=within_what_spt_can_use(structured),
        presets=_presets(loras=loras),
        default_preset=default_preset,
    )


def _sparse(
    name: str,
    label: str,
    rule: Callable[..., Allocation],
    check: Callable[[ModelOutline, int | str], None],
    *,
    criterion: CriterionName,
) -> Method:
    """A sparse method of another paper's, with the scores that it ranks by."""
    return PlacedMethod(
        name=name,
        label=label,
        takes=frozenset({"budget"}),
        follows_scores=True,
        criterion=criterion,
        place=by_rule(rule),
        fits=within_the_rule(check),
    )


_ALL: tuple[Method, ...] = (
    # What the accuracy suite supports on validation images at every learning rate tried (docs/accuracy.md) is their
    # default; sparse values alone gain from it at high rates only.
    _spt("spt-lora", "SPT-LoRA", "lora", default_preset="best"),
    _spt("spt-adapter", "SPT-Adapter", "adapter", default_preset="best"),
    _spt("sparse", "SPT sparse only", None),
    PlacedMethod(name="lora", label="Uniform LoRA", takes=frozenset({"lora_start"}), place=everywhere("lora")),
    PlacedMethod(
        name="lora-stored",
        label="LoRA as PEFT places it",
        takes=frozenset({"lora_start"}),
        split_fused=False,
        place=everywhere("lora", train_tokens=False),
    ),
    PlacedMethod(
        name="lora-qv",
        label="LoRA on q and v",
        takes=frozenset({"lora_start"}),
        place=everywhere("lora", operations=("q", "v"), train_tokens=False),
    ),
    PlacedMethod(name="adapter", label="Uniform Adapter", place=everywhere("adapter")),
    PlacedMethod(name="random", label="Random placement", takes=frozenset({"budget"}), place=at_random),
    PlacedMethod(
        name="random-lora",
        label="LoRA on random matrices",
        takes=frozenset({"budget", "lora_start"}),
        place=on_random_matrices,
    ),
    PlacedMethod(name="random-sparse", label="Random entries", takes=frozenset({"budget"}), place=scattered),
    _sparse(
        "layerwise",
        "Largest weights of each layer",
        layerwise_allocation,
        check_layerwise_budget,
        criterion="magnitude",
    ),
    _sparse(
        "neuron",
        "Best inputs of each neuron",
        neuron_allocation,
        check_neuron_budget,
        criterion="absolute_gradient_sum",
    ),
    PlacedMethod(name="vectors", label="Biases, norms and scales", place=everywhere(None, vectors=True)),
    PlacedMethod(name="head", label="Head only", place=everywhere(None, train_tokens=False)),
    WholeMethod(name="full", label="Full fine-tuning"),
    StockMethod(name="peft", label="PEFT", takes=frozenset({"peft"})),
)
_BY_NAME = {method.name: method for method in _ALL}
_AUTO = AutoMethod(
    name="auto", label="Auto", takes=frozenset({"budget"}), candidates=CANDIDATES, methods=MappingProxyType(_BY_NAME)
)

METHODS: Final[Mapping[str, Method]] = MappingProxyType({**_BY_NAME, _AUTO.name: _AUTO})
"""Name -> method, in the order in which a reader meets them."""
