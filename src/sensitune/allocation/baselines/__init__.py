"""Placements to compare with: the same everywhere, chance, or another paper's rule, as the same `Allocation`."""

from sensitune.allocation.baselines._layerwise import check_layerwise_budget, layerwise_allocation
from sensitune.allocation.baselines._neuron import check_neuron_budget, neuron_allocation
from sensitune.allocation.baselines._random import random_allocation
from sensitune.allocation.baselines._random_structured import random_structured_allocation
from sensitune.allocation.baselines._uniform import uniform_allocation

__all__ = [
    "check_layerwise_budget",
    "check_neuron_budget",
    "layerwise_allocation",
    "neuron_allocation",
    "random_allocation",
    "random_structured_allocation",
    "uniform_allocation",
]
