"""Scores -> a placement of plain LoRAs, what it costs, and whether it is worth more than placing them everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from sensitune.allocation import Stability, placement_stability
from sensitune.sensitivity import Sensitivity
from sensitune.tuner.plain_lora import LoraPlan, plan_lora

Verdict: TypeAlias = Literal["place", "flat", "unstable"]

# Below, chosen modules hold hardly more of the score than modules of their size drawn at random would.
FLAT_BELOW: Final = 1.25
# Below, most modules are chosen by the batches rather than by the task.
UNSTABLE_BELOW: Final = 0.5


@dataclass(frozen=True, eq=False)
class Advice:
    """Where a budget belongs, and how much that says.

    Attributes:
        plan: The LoRAs, as a `peft.LoraConfig` and as an allocation.
        stability: How many of its modules each half of the batches alone would have chosen too.
        focus: The chosen matrices' share of the score of all matrices over their share of the parameters; 1 is what
            matrices drawn at random have on average.
    """

    plan: LoraPlan
    stability: Stability
    focus: float

    @property
    def verdict(self) -> Verdict:
        """``"place"``; ``"flat"`` if `focus` is below 1.25; ``"unstable"`` if less than half of the modules stay."""
        if self.focus < FLAT_BELOW:
            return "flat"
        kept = self.stability.modules_kept / self.stability.modules
        return "unstable" if kept < UNSTABLE_BELOW else "place"

    @property
    def sentence(self) -> str:
        """The verdict in words, with the numbers behind it."""
        holds = f"the chosen modules hold {self.focus:.1f} times the score that their size would give them"
        if self.verdict == "flat":
            return f"Uniform is fine here: the scores are flat ({holds})."
        if self.verdict == "unstable":
            return f"Uniform is fine here: the placement depends on the batches ({self.stability})."
        return f"Place it: {holds}, and {self.stability}."

    @property
    def adapter_bytes(self) -> int:
        """Size of the trained adapter with its head, in float32."""
        return 4 * (self.plan.trainable_params + self.plan.head_params)

    @property
    def optimizer_bytes(self) -> int:
        """What Adam holds of it: two float32 values per trained parameter."""
        return 2 * self.adapter_bytes

    @property
    def step_arithmetic(self) -> float:
        """Multiplications of a training step over those of the frozen model's forward and input gradients; computed.

        A frozen matrix takes two products per token, ``2 · in · out``; a LoRA of rank r adds ``3 · r · (in + out)``:
        its output, its input's gradient, and its own.
        """
        outline = self.plan.allocation.outline
        frozen = sum(2 * site.numel for site in outline.sites if site.kind == "matrix")
        added = sum(
            3 * rank * (site.in_features + site.out_features)
            for name, rank in self.plan.allocation.structured.items()
            for site in (self.plan.allocation.site(name),)
        )
        return 1 + added / frozen


def advise(
    sensitivity: Sensitivity,
    *,
    budget: int | str = "0.5%",
    rank: int | None = None,
    allowed: Sequence[str] | None = None,
    **options: Any,
) -> Advice:
    """Say where plain LoRAs should go under a budget, and whether it matters.

    Args:
        sensitivity: Estimated with ``keep_halves=True``.
        budget: What PEFT may train, the head not counted: a number, or text as in `allocate`.
        rank: One rank for every module, for trainers that take no other; None = a rank of its own for each.
        allowed: Which modules, as in `plan_lora`.
        **options: Further options of `plan_lora` and fields of `peft.LoraConfig`, such as ``task_type``.

    Returns:
        The advice.

    Raises:
        ArgumentError: If the halves were not kept, or an option is out of range.
        BudgetError: If the budget does not pay for one rank.
        ModelError: If the model has no linear layer.
    """

    def place(scores: Sensitivity) -> LoraPlan:
        return plan_lora(scores, budget=budget, rank=rank, allowed=allowed, **options)

    plan = place(sensitivity)
    stability = placement_stability(sensitivity, lambda scores: place(scores).allocation)
    return Advice(plan, stability, _focus(plan))


def _focus(plan: LoraPlan) -> float:
    outline = plan.allocation.outline
    sizes = {site.id: site.numel for site in outline.sites if site.kind == "matrix"}
    scores = {
        site.id: float(plan.sensitivity.score_of(site).double().sum())
        for site in plan.sensitivity.sites
        if site.kind == "matrix"
    }
    # Slices of a fused projection count as the one matrix that PEFT tunes.
    by_parameter: dict[str, float] = {}
    for site in plan.sensitivity.sites:
        if site.id in scores:
            by_parameter[site.parameter] = by_parameter.get(site.parameter, 0.0) + scores[site.id]
    chosen = list(plan.allocation.structured)
    held = sum(by_parameter[plan.allocation.site(name).parameter] for name in chosen)
    total = sum(by_parameter.values())
    size = sum(sizes[name] for name in chosen) / sum(sizes.values())
    return held / total / size if total > 0 else 1.0
