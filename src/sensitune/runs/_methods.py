"""A method's name -> its allocation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import nn

from sensitune.allocation import (
    Allocation,
    StructuredType,
    allocate,
    knapsack_allocation,
    layerwise_allocation,
    neuron_allocation,
    random_allocation,
    random_structured_allocation,
    uniform_allocation,
)
from sensitune.errors import ArgumentError
from sensitune.runs._config import BUDGETED_METHODS, DEFAULT_BUDGET, CriterionName, Method, RunConfig
from sensitune.sensitivity import Sensitivity
from sensitune.sites import ModelOutline, outline_model


@dataclass(frozen=True)
class MethodInfo:
    """What a method is called, and how it places its parameters.

    Attributes:
        label: What a reader calls it.
        needs_sensitivity: Whether it looks at the scores.
        place: (settings, outline, sensitivity or None) -> allocation.
        outline: How it sees the model.
        criterion: What it ranks by, where that is part of the method; None = what the settings say.
    """

    label: str
    needs_sensitivity: bool
    place: Callable[[RunConfig, ModelOutline, Sensitivity | None], Allocation]
    outline: Callable[[nn.Module], ModelOutline] = outline_model
    criterion: CriterionName | None = None


def _follow(structured: StructuredType | None) -> Callable[[RunConfig, ModelOutline, Sensitivity | None], Allocation]:
    """SPT's rule; without a structured module it is purely sparse, vectors included."""

    def place(config: RunConfig, outline: ModelOutline, sensitivity: Sensitivity | None) -> Allocation:
        assert sensitivity is not None
        if config.placement == "knapsack":
            return knapsack_allocation(sensitivity, budget=_given(config))
        return allocate(
            sensitivity,
            budget=budget_of(config),
            tau=config.tau,
            structured=structured,
            rank=config.rank,
            alpha=config.alpha,
            beta=config.beta,
            whole_vectors=structured is not None,
        )

    return place


def _spend_at_random(config: RunConfig, outline: ModelOutline, sensitivity: Sensitivity | None) -> Allocation:
    return random_allocation(
        outline, budget=_given(config), rank=config.rank, alpha=config.alpha, beta=config.beta, seed=config.seed
    )


def _scatter(config: RunConfig, outline: ModelOutline, sensitivity: Sensitivity | None) -> Allocation:
    return random_allocation(outline, budget=_given(config), structured=None, whole_vectors=False, seed=config.seed)


def _drop_modules(config: RunConfig, outline: ModelOutline, sensitivity: Sensitivity | None) -> Allocation:
    return random_structured_allocation(outline, budget=_given(config), rank=config.rank, seed=config.seed)


def _spend_by(rule: Callable[..., Allocation]) -> Callable[[RunConfig, ModelOutline, Sensitivity | None], Allocation]:
    """A sparse rule of its own."""

    def place(config: RunConfig, outline: ModelOutline, sensitivity: Sensitivity | None) -> Allocation:
        return rule(sensitivity, budget=_given(config))

    return place


def _given(config: RunConfig) -> int | str:
    """The budget of a method that can spend nothing else."""
    budget = budget_of(config)
    if budget is None:
        raise ArgumentError(f"The method {config.method} spends a `budget`; it has no `tau`. Got {config.tau}.")
    return budget


def _everywhere(
    structured: StructuredType | None,
    *,
    operations: tuple[str, ...] | None = None,
    vectors: bool = False,
    train_tokens: bool = True,
) -> Callable[[RunConfig, ModelOutline, Sensitivity | None], Allocation]:
    """The same on every site of a kind."""

    def place(config: RunConfig, outline: ModelOutline, sensitivity: Sensitivity | None) -> Allocation:
        return uniform_allocation(
            outline,
            structured=structured,
            rank=config.rank,
            operations=operations,
            vectors=vectors,
            train_tokens=train_tokens,
        )

    return place


def _unsplit(model: nn.Module) -> ModelOutline:
    return outline_model(model, split_fused=False)


def _whole(model: nn.Module) -> ModelOutline:
    """Every parameter but the head's as one that is always trained."""
    outline = outline_model(model)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    body = {
        name: shape for name, shape in shapes.items() if not name.startswith(tuple(f"{each}." for each in outline.head))
    }
    return replace(outline, always_trained=body, frozen={})


METHODS: Mapping[Method, MethodInfo] = {
    "spt-lora": MethodInfo("SPT-LoRA", True, _follow("lora")),
    "spt-adapter": MethodInfo("SPT-Adapter", True, _follow("adapter")),
    "sparse": MethodInfo("SPT sparse only", True, _follow(None)),
    "lora": MethodInfo("Uniform LoRA", False, _everywhere("lora")),
    "lora-stored": MethodInfo("LoRA as PEFT places it", False, _everywhere("lora", train_tokens=False), _unsplit),
    "lora-qv": MethodInfo("LoRA on q and v", False, _everywhere("lora", operations=("q", "v"), train_tokens=False)),
    "adapter": MethodInfo("Uniform Adapter", False, _everywhere("adapter")),
    "random": MethodInfo("Random placement", False, _spend_at_random),
    "random-lora": MethodInfo("LoRA on random matrices", False, _drop_modules),
    "random-sparse": MethodInfo("Random entries", False, _scatter),
    "magnitude": MethodInfo(
        "Largest weights of each layer", True, _spend_by(layerwise_allocation), criterion="magnitude"
    ),
    "neurons": MethodInfo(
        "Best inputs of each neuron", True, _spend_by(neuron_allocation), criterion="absolute_gradient_sum"
    ),
    "vectors": MethodInfo("Biases, norms and scales", False, _everywhere(None, vectors=True)),
    "head": MethodInfo("Head only", False, _everywhere(None, train_tokens=False)),
    "full": MethodInfo("Full fine-tuning", False, _everywhere(None), _whole),
}


def needs_sensitivity(config: RunConfig) -> bool:
    """Whether a run takes the first stage: for its placement, or for where its LoRAs start."""
    return METHODS[config.method].needs_sensitivity or config.needs_gradients


def scoring_method(config: RunConfig) -> Method:
    """The method, or spt-lora where its scores are the same because both see the model alike."""
    sees_otherwise = METHODS[config.method].outline is not outline_model
    return config.method if needs_sensitivity(config) and sees_otherwise else "spt-lora"


def criterion_of(config: RunConfig) -> CriterionName:
    """What a run's scores are: the method's own criterion, or the one of the settings."""
    return METHODS[config.method].criterion or config.sensitivity.criterion


def budget_of(config: RunConfig) -> int | str | None:
    """The budget a run is given: its own, the default one, or none where `tau` or the method decides."""
    if config.method not in BUDGETED_METHODS or config.tau is not None:
        return None
    return DEFAULT_BUDGET if config.budget is None else config.budget
