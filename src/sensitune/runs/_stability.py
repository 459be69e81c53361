"""How far a run's placement depends on the images that its scores were taken of."""

from __future__ import annotations

from sensitune.allocation import Allocation, Stability, placement_stability
from sensitune.runs._run import Run
from sensitune.sensitivity import Sensitivity


def stability_of(run: Run) -> Stability | None:
    """What each half of a run's batches alone would have placed too.

    Args:
        run: A run; what it has not placed yet is placed.

    Returns:
        The counts; None unless the halves of the scores were kept (`SensitivitySettings.keep_halves`) and decide the
        placement.
    """
    allocation, sensitivity = run.allocation(), run.known_sensitivity()
    if allocation is None or sensitivity is None or sensitivity.halves is None or allocation.rule != "spt":
        return None
    method, settings, seed = run.settled.method, run.settled.allocation, run.settled.seed

    def place(half: Sensitivity) -> Allocation:
        placed = method.allocate(settings, half.outline, half, seed=seed)
        assert placed is not None
        return placed

    return placement_stability(sensitivity, place)
