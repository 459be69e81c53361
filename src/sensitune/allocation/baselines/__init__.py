"""Placements to compare with: the same everywhere, chance, or another paper's rule, as the same `Allocation`."""

from sensitune.allocation.baselines._baselines import (
    random_allocation,
    random_structured_allocation,
    uniform_allocation,
)
from sensitune.allocation.baselines._layerwise import layerwise_allocation
from sensitune.allocation.baselines._neurons import neuron_allocation

__all__ = [
    "layerwise_allocation",
    "neuron_allocation",
    "random_allocation",
    "random_structured_allocation",
    "uniform_allocation",
]
