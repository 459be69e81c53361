"""Where a budget of trainable parameters goes.

Each site with c selected scalars is tuned in one of three ways: a matrix ``[out, in]`` gets a module of P parameters
where c ≥ P / alpha (LoRA: P = r·(in + out); Adapter: P = 2·r·out + r + out), a vector ``[n]`` is tuned whole where
c ≥ n / beta, and everywhere else exactly the selected scalars are trained (He et al., ICCV 2023, section 3.3). Under a
budget the ranking is walked down until the cost equals it (`allocate`).

`compute_lora_start` goes beyond the paper: it lets each LoRA start along the accumulated gradient. `lora_allocation`
places LoRAs alone, for trainers that know nothing else. The others are baselines: the same everywhere, chance, or
another paper's rule.

Pure CPU code: it sees scores, gradients and sites, never a model.

Example:
    >>> import torch
    >>> from sensitune.allocation import allocate
    >>> from sensitune.sensitivity import Sensitivity
    >>> from sensitune.sites import outline_model
    >>> model = torch.nn.Sequential(torch.nn.Linear(40, 40), torch.nn.Linear(40, 2))
    >>> outline = outline_model(model)
    >>> generator = torch.Generator().manual_seed(0)
    >>> parameters = dict(model.named_parameters())
    >>> names = {site.parameter for site in outline.sites}
    >>> scores = {name: torch.rand(parameters[name].shape, generator=generator) for name in names}
    >>> allocation = allocate(Sensitivity(scores, outline, {}), budget=200, rank=2)
    >>> allocation.trainable_params
    200
"""

from sensitune.allocation._allocate import allocate
from sensitune.allocation._allocation import Allocation
from sensitune.allocation._budget import parse_budget
from sensitune.allocation._cost import StructuredType, check_rank, module_params
from sensitune.allocation._lora_allocation import lora_allocation
from sensitune.allocation._lora_start import compute_lora_start
from sensitune.allocation._matrices import matrices_alone
from sensitune.allocation._overlap import overlap
from sensitune.allocation._published import load_published_allocation
from sensitune.allocation._room import check_budget
from sensitune.allocation._rows import GroupRow, SiteRow, group_rows
from sensitune.allocation._stability import Stability, placement_stability
from sensitune.allocation.baselines import (
    check_layerwise_budget,
    check_neuron_budget,
    layerwise_allocation,
    neuron_allocation,
    random_allocation,
    random_structured_allocation,
    uniform_allocation,
)

__all__ = [
    "Allocation",
    "GroupRow",
    "SiteRow",
    "Stability",
    "StructuredType",
    "allocate",
    "check_budget",
    "check_layerwise_budget",
    "check_neuron_budget",
    "check_rank",
    "compute_lora_start",
    "group_rows",
    "layerwise_allocation",
    "load_published_allocation",
    "lora_allocation",
    "matrices_alone",
    "module_params",
    "neuron_allocation",
    "overlap",
    "parse_budget",
    "placement_stability",
    "random_allocation",
    "random_structured_allocation",
    "uniform_allocation",
]
