"""What a run of the method auto tries before it is one of its candidates' runs; ``choice.json``.

With n epochs, up to six candidates train for n // 6 of them, the best two for three times as many, and the best one
all n: three full runs at most. Each short training has a whole schedule of its own, so that what it reaches can be
compared. What is compared is accuracy on the validation split; the candidates' data has no test split.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sensitune._schema import NonEmptyText, PositiveInt, UnitInterval, load, to_plain, write_json
from sensitune.errors import NonFiniteError, RunFolderError
from sensitune.runs._config import RunConfig
from sensitune.runs._ingredients import Ingredients
from sensitune.runs.methods import AutoMethod, Plan
from sensitune.training import TrainingResult

if TYPE_CHECKING:
    from sensitune.runs._run import Run


@dataclass(frozen=True)
class Trial:
    """A candidate's training on one rung.

    Attributes:
        candidate: What a reader calls it.
        rung: Which rung, from 1.
        epochs: How long it trained.
        steps: The same in steps of the optimiser.
        validation_accuracy: What it reached, in [0, 1]; None if its loss did not stay finite.
        validation_loss: Mean cross-entropy there.
        kept: Whether it went on.
        outcome: What became of it, and why.
    """

    candidate: NonEmptyText
    rung: PositiveInt
    epochs: PositiveInt
    steps: PositiveInt
    validation_accuracy: UnitInterval | None
    validation_loss: float | None
    kept: bool
    outcome: str


@dataclass(frozen=True)
class Choice:
    """What was tried, and what came of it.

    Attributes:
        chosen: The candidate that was chosen.
        settings: Its settings that differ from those of the run, by group.
        full_steps: Steps of a full run.
        trials: Every candidate on every rung.
        left_out: Candidate -> why it could not be tried.
    """

    chosen: NonEmptyText
    settings: Mapping[str, Mapping[str, Any]]
    full_steps: PositiveInt
    trials: tuple[Trial, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def full_runs(self) -> float:
        """Cost of it all in full runs, the chosen one's among them."""
        return 1 + sum(trial.steps for trial in self.trials) / self.full_steps


def settle(run: Run) -> RunConfig:
    """The settings that a run's stages follow: its own, or those of the candidate it has chosen or chooses now.

    Args:
        run: The run.

    Returns:
        The settings.
    """
    if not isinstance(run.config.method, AutoMethod):
        return run.config
    choice = read_choice(run) or _choose(run, run.config.method)
    values = run.config.to_dict()
    for group, changes in choice.settings.items():
        values[group] = {**values[group], **changes}
    return RunConfig.from_dict(values, source=run.folder.choice)


def read_choice(run: Run) -> Choice | None:
    """What a run has tried.

    Args:
        run: The run.

    Returns:
        It; None if it has not chosen yet, or has nothing to choose.

    Raises:
        RunFolderError: If ``choice.json`` is damaged.
    """
    path = run.folder.choice
    return load(Choice, path, error=RunFolderError) if path.exists() else None


def _choose(run: Run, method: AutoMethod) -> Choice:
    with run.folder.writing():
        plans, left_out = method.plans(run.config.allocation, lambda fused: run.ingredients.outline(split_fused=fused))
        chosen, trials = (plans[0], []) if len(plans) == 1 else _try_all(run, plans)
        settings = {
            "allocation": to_plain(chosen.settings),
            "recipe": {"in_place_rate": chosen.candidate.in_place_rate},
        }
        steps = _steps(run, run.config.recipe.epochs)
        choice = Choice(chosen.candidate.label, settings, steps, tuple(trials), left_out)
        write_json(run.folder.choice, to_plain(choice))
        return choice


def _try_all(run: Run, plans: list[Plan]) -> tuple[Plan, list[Trial]]:
    from sensitune.runs._halving import halve  # scikit-learn takes a second to import

    by_name = {plan.candidate.name: plan for plan in plans}
    ingredients = run.ingredients.without_test()
    found: dict[tuple[str, int], TrainingResult | None] = {}

    def score(name: str, epochs: int) -> float:
        found[name, epochs] = _try(run, by_name[name], epochs, ingredients)
        return _score(found[name, epochs], len(ingredients.data.dataset["validation"]))

    rungs = halve(list(by_name), score, epochs=run.config.recipe.epochs // AutoMethod.fewest_epochs)
    last = max(each.rung for each in rungs)
    trials = []
    for each in rungs:
        result = found[each.name, each.epochs]
        going = "chosen" if each.rung == last else "goes on"
        staying = "dropped: others of its rung did better" if result else "dropped: its loss did not stay finite"
        trials.append(
            Trial(
                candidate=by_name[each.name].candidate.label,
                rung=each.rung,
                epochs=each.epochs,
                steps=_steps(run, each.epochs),
                validation_accuracy=result.validation_accuracy_last if result else None,
                validation_loss=result.metrics[-1].validation_loss if result else None,
                kept=each.kept,
                outcome=going if each.kept else staying,
            )
        )
    best = next(each.name for each in rungs if each.rung == last and each.kept)
    if found[best, max(each.epochs for each in rungs)] is None:
        raise NonFiniteError(
            "The loss of every candidate of auto must stay finite, and none did. Lower `recipe.learning_rate`."
        )
    return by_name[best], trials


def _try(run: Run, plan: Plan, epochs: int, ingredients: Ingredients) -> TrainingResult | None:
    """A candidate's short training, in a run folder of its own; None if its loss did not stay finite."""
    config = plan.config(run.config)
    config = replace(
        config,
        data=replace(config.data, test=False),
        recipe=replace(config.recipe, epochs=epochs, validate="end"),
    )
    run.reporter.stage(f"Trying {plan.candidate.label} for {epochs} of {run.config.recipe.epochs} epochs")
    folder = run.folder.candidates / f"{plan.candidate.name}-{epochs}"
    trial = type(run).open(folder, config, ingredients=ingredients, scores=run.scores, reporter=run.reporter)
    try:
        return trial.train()
    except NonFiniteError:
        return None


def _score(result: TrainingResult | None, num_images: int) -> float:
    """Accuracy; of equals the one with the lower loss is better, by less than one image counts."""
    if result is None:
        return -1.0
    accuracy, loss = result.validation_accuracy_last, result.metrics[-1].validation_loss
    assert accuracy is not None
    assert loss is not None
    return accuracy + 0.5 / num_images / (1 + loss)


def _steps(run: Run, epochs: int) -> int:
    return epochs * math.ceil(len(run.ingredients.data.dataset["train"]) / run.config.recipe.batch_size)
