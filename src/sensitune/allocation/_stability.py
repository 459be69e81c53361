"""How far a placement depends on the batches that its scores came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import fmean

from sensitune.allocation._allocation import Allocation
from sensitune.allocation._overlap import in_all, trained_values
from sensitune.sensitivity import Sensitivity


@dataclass(frozen=True, slots=True)
class Stability:
    """What of an allocation each half of the batches alone would have chosen too.

    Attributes:
        modules: Matrices with a LoRA or an Adapter.
        modules_kept: Those that have one by either half.
        values: Pretrained values that are trained, in whole vectors or one by one.
        values_kept: Those that are trained by either half.
        by_site: Site -> the share of what is tuned there that one half alone would tune too, mean of both halves; of a
            module 1.0 says that both place one there.
    """

    modules: int
    modules_kept: int
    values: int
    values_kept: int
    by_site: Mapping[str, float] = field(default_factory=dict, repr=False, compare=False)

    def __str__(self) -> str:
        """In words, of modules where there are any: ``12 of 14 modules stay under resampling``."""
        if self.modules:
            return f"{self.modules_kept} of {self.modules} modules stay under resampling"
        return f"{self.values_kept:,} of {self.values:,} values stay under resampling"


def placement_stability(sensitivity: Sensitivity, place: Callable[[Sensitivity], Allocation]) -> Stability:
    """Place by all batches and by each half of them, and count what stays.

    Half the batches rank with more noise than all do, so what stays is a lower bound of what other images of the same
    kind would leave.

    Args:
        sensitivity: Estimated with ``keep_halves=True``.
        place: The rule, such as ``lambda sensitivity: allocate(sensitivity, budget="0.5%")``.

    Returns:
        The counts.

    Raises:
        ArgumentError: If the halves were not kept.
    """
    whole, *halves = (place(each) for each in (sensitivity, *sensitivity.of_halves()))
    values, of_halves = trained_values(whole), [trained_values(half) for half in halves]
    kept = {site: flat[in_all(flat, site, of_halves)] for site, flat in values.items()}
    return Stability(
        modules=len(whole.structured),
        modules_kept=sum(all(site in half.structured for half in halves) for site in whole.structured),
        values=sum(flat.numel() for flat in values.values()),
        values_kept=sum(flat.numel() for flat in kept.values()),
        by_site={site: fmean(site in half.structured for half in halves) for site in whole.structured}
        | {
            site: fmean(float(in_all(flat, site, [half]).double().mean()) for half in of_halves)
            for site, flat in values.items()
            if flat.numel()
        },
    )
