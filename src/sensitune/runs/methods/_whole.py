"""Full fine-tuning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peft import PeftModel, get_peft_model

from sensitune.runs.methods._method import Method
from sensitune.tuner import SptConfig

if TYPE_CHECKING:
    from sensitune.runs._run import Run


class WholeMethod(Method):
    """Every parameter trains; the adapter folder holds its difference from the base."""

    def make_tuned(self, run: Run) -> PeftModel:
        """Every parameter of the backbone whole, and the head."""
        model = run.ingredients.fresh_backbone(drop_path=run.config.recipe.drop_path).model
        tuned = get_peft_model(model, SptConfig.for_whole_model(model))
        assert isinstance(tuned, PeftModel)
        return tuned
