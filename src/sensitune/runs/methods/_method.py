"""What every method of a run can be asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from peft import PeftModel

from sensitune.allocation import Allocation
from sensitune.sensitivity import CriterionName, Sensitivity
from sensitune.sites import ModelOutline

if TYPE_CHECKING:
    from sensitune.runs._run import Run
    from sensitune.runs._settings import AllocationSettings, SensitivitySettings

PresetName = Literal["paper", "best"]
Preset = Mapping[str, Mapping[str, Any]]
"""Group of settings -> setting -> value; what it does not name is left alone."""

DEFAULT_BUDGET: Final = "0.5%"


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A method: everything that tells it from the others.

    Attributes:
        name: What the setting `method` calls it.
        label: What a reader calls it.
        takes: Those of the settings budget, tau, placement, lora_start, servable and peft that mean something to it.
        follows_scores: Whether it looks at the scores whatever its settings.
        criterion: What it ranks by, where that is part of the method; None = what the settings say.
        split_fused: Whether it takes q, k and v of a fused projection as matrices of their own.
        presets: Its settings by name.
        default_preset: The one that the command line and `compare` take; None = the settings' own defaults.
    """

    name: str
    label: str
    takes: frozenset[str] = frozenset()
    follows_scores: bool = False
    criterion: CriterionName | None = None
    split_fused: bool = True
    presets: Mapping[PresetName, Preset] = field(default_factory=dict)
    default_preset: PresetName | None = None

    @property
    def spends_budget(self) -> bool:
        """Whether it is given a budget; what others cost follows from the model and their settings."""
        return "budget" in self.takes

    def title(self, settings: AllocationSettings) -> str:
        """What a reader calls it under some settings."""
        return self.label

    def budget(self, settings: AllocationSettings) -> int | str | None:
        """The budget it spends: that of the settings, the default one, or none where tau or the method decides."""
        if not self.spends_budget or settings.tau is not None:
            return None
        return DEFAULT_BUDGET if settings.budget is None else settings.budget

    def needs_scores(self, settings: AllocationSettings) -> bool:
        """Whether a run with these settings takes the first stage: to place, or for where its LoRAs start."""
        return self.follows_scores or _looks_at_gradients(settings)

    def scoring(self, settings: AllocationSettings, sensitivity: SensitivitySettings) -> SensitivitySettings:
        """How its scores are estimated: as the settings say, but for what is part of the method."""
        return replace(
            sensitivity,
            criterion=self.criterion or sensitivity.criterion,
            split_fused=self.split_fused and sensitivity.split_fused,
            keep_gradients=sensitivity.keep_gradients or _looks_at_gradients(settings),
            keep_halves=sensitivity.keep_halves and self.criterion is None,
        )

    def allocate(
        self, settings: AllocationSettings, outline: ModelOutline, sensitivity: Sensitivity | None, *, seed: int
    ) -> Allocation | None:
        """Decide what is tuned.

        Args:
            settings: The budget and what else there is to say.
            outline: The model.
            sensitivity: Its scores; None if `needs_scores` says no.
            seed: Of a random placement.

        Returns:
            The allocation; None if the method places nothing.
        """
        return None

    def check(self, run: Run) -> Allocation | None:
        """Make sure that what the settings ask for has room in the model, before anything is computed.

        Args:
            run: A run of this method.

        Returns:
            The allocation, where it depends on no scores; None where it is still to be found, or there is none.
        """
        return None

    @abstractmethod
    def make_tuned(self, run: Run) -> PeftModel:
        """The model that is trained, on a fresh backbone of the run; what is random in it is drawn from torch's state.

        Args:
            run: A run of this method whose earlier stages are done.

        Returns:
            A PEFT model in which what trains, the head too, requires a gradient.
        """


def _looks_at_gradients(settings: AllocationSettings) -> bool:
    return settings.lora_start == "gradient"
