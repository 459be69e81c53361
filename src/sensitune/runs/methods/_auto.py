"""The method that tries others first: which of them, with which settings, under one budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from peft import PeftModel

from sensitune._installed import need
from sensitune._processes import Processes
from sensitune.allocation import parse_budget
from sensitune.errors import ArgumentError
from sensitune.runs.methods._candidates import MOST_CANDIDATES, Candidate
from sensitune.runs.methods._method import DEFAULT_BUDGET, Method
from sensitune.runs.methods._placed import PlacedMethod
from sensitune.sites import ModelOutline

if TYPE_CHECKING:
    from sensitune.runs._config import RunConfig
    from sensitune.runs._run import Run
    from sensitune.runs._settings import AllocationSettings


@dataclass(frozen=True)
class Plan:
    """A candidate under a budget.

    Attributes:
        candidate: The candidate.
        settings: What it is placed by.
    """

    candidate: Candidate
    settings: AllocationSettings

    def config(self, config: RunConfig) -> RunConfig:
        """Settings of a run of auto as those of this candidate's run."""
        recipe = replace(config.recipe, in_place_rate=self.candidate.in_place_rate)
        return replace(config, allocation=self.settings, recipe=recipe)


@dataclass(frozen=True, kw_only=True)
class AutoMethod(Method):
    """Tries candidates for a part of the training, and goes on as the best of them.

    Attributes:
        candidates: What is tried.
        methods: The methods that they are of, by name.
    """

    finds: ClassVar[Mapping[str, Sequence[str]]] = {
        "allocation": ("rank", "alpha", "beta"),
        "recipe": ("in_place_rate",),
    }
    """Group -> its settings that each candidate has values of its own for."""
    fewest_epochs: ClassVar[int] = MOST_CANDIDATES
    """Of a recipe; a candidate is first tried for a part of them."""

    candidates: Sequence[Candidate]
    methods: Mapping[str, Method]

    def check(self, run: Run) -> None:
        """Refuse what cannot be chosen by, and a budget that pays for no candidate."""
        need("auto", what="The method auto")
        if Processes.found().count > 1:
            raise ArgumentError(
                "The method auto works in one process: its candidates are tried one after the other. Start it without "
                "a launcher, or name a method."
            )
        splits = run.ingredients.data.dataset
        if "validation" not in splits:
            raise ArgumentError(
                f"The method auto chooses on a validation split, and the data has none: {', '.join(splits)}. Give it "
                "one, or name a method."
            )
        self.plans(run.config.allocation, lambda fused: run.ingredients.outline(split_fused=fused))

    def plans(
        self, settings: AllocationSettings, outline: Callable[[bool], ModelOutline]
    ) -> tuple[list[Plan], dict[str, str]]:
        """The candidates that the budget pays for.

        Args:
            settings: With the budget.
            outline: The model, given whether q, k and v of a fused projection are matrices of their own.

        Returns:
            The plans, and why the other candidates have none, by label.

        Raises:
            ArgumentError: If no candidate has one.
        """
        given = DEFAULT_BUDGET if settings.budget is None else settings.budget
        budget = parse_budget(given, backbone_params=outline(True).backbone_params)
        plans: list[Plan] = []
        left_out: dict[str, str] = {}
        for candidate in self.candidates:
            method = self.methods[candidate.method]
            assert isinstance(method, PlacedMethod)
            try:
                plans.append(Plan(candidate, _fitted(candidate, method, settings, budget, outline(method.split_fused))))
            except ArgumentError as error:
                left_out[candidate.label] = str(error)
        if not plans:
            reasons = " ".join(f"{label}: {reason}" for label, reason in left_out.items())
            raise ArgumentError(f"`allocation.budget` pays for no candidate of auto. Got {given!r}. {reasons}")
        return plans, left_out

    def make_tuned(self, run: Run) -> PeftModel:
        """That of the candidate that was chosen."""
        return run.settled.method.make_tuned(run)


def _fitted(
    candidate: Candidate, method: PlacedMethod, settings: AllocationSettings, budget: int, outline: ModelOutline
) -> AllocationSettings:
    """A candidate's settings under a budget; raises if it pays for none."""
    wanted: dict[str, Any] = {"method": candidate.method, **candidate.allocation}
    if method.spends_budget:
        fitted = replace(settings, **wanted, budget=budget)
        method.fits(fitted, outline)
        return fitted
    fitted = replace(settings, **wanted, budget=None, rank=1)
    cost = method.allocate(fitted, outline, None, seed=0).trainable_params
    if cost > budget:
        raise ArgumentError(f"Rank 1 costs {cost:,} parameters, the budget is {budget:,}.")
    highest = max(min(site.in_features, site.out_features) for site in outline.sites if site.kind == "matrix")
    # What a LoRA costs is in proportion to its rank.
    return replace(fitted, rank=min(budget // cost, highest))
