"""Sensitune: find the few parameters of a pretrained model that are worth training for a task, and train them.

It implements SPT (He et al., *Sensitivity-Aware Visual Parameter-Efficient Fine-Tuning*, ICCV 2023, arXiv 2303.08566)
as a Hugging Face PEFT method. Data flows one way:

    batches + backbone -> `estimate_sensitivity` -> `Sensitivity` -> `allocate` -> `Allocation`
        -> `SptConfig.from_allocation`, `peft.get_peft_model` -> any training loop -> adapter folder -> merge

Importing this package registers the method with PEFT, so that ``PeftModel.from_pretrained`` knows its adapters.

Example:
    >>> import timm, torch
    >>> from peft import get_peft_model
    >>> import sensitune
    >>> model = timm.create_model("vit_tiny_patch16_224", num_classes=10, depth=1)
    >>> batches = [(torch.randn(2, 3, 224, 224), torch.tensor([0, 1]))]
    >>> sensitivity = sensitune.estimate_sensitivity(model, batches)
    >>> allocation = sensitune.allocate(sensitivity, budget=10_000)
    >>> tuned = get_peft_model(model, sensitune.SptConfig.from_allocation(allocation))
    >>> sum(p.numel() for p in tuned.parameters() if p.requires_grad) - allocation.head_params
    10000
"""

from sensitune._installed import check_stack

check_stack()  # before what fails to be imported, or worse, with an older one

from sensitune.allocation import (
    Allocation,
    allocate,
    compute_lora_start,
    load_published_allocation,
    random_allocation,
    uniform_allocation,
)
from sensitune.sensitivity import Sensitivity, estimate_sensitivity
from sensitune.sites import ModelOutline, Site, find_sites, outline_model
from sensitune.tuner import SptConfig, SptModel, apply_lora_start, dequantise
from sensitune.tuner.plain_lora import LoraExport, LoraPlan, export_lora, lora_config, plan_lora

__version__ = "0.1.0"

__all__ = [
    "Allocation",
    "LoraExport",
    "LoraPlan",
    "ModelOutline",
    "Sensitivity",
    "Site",
    "SptConfig",
    "SptModel",
    "__version__",
    "allocate",
    "apply_lora_start",
    "compute_lora_start",
    "dequantise",
    "estimate_sensitivity",
    "export_lora",
    "find_sites",
    "load_published_allocation",
    "lora_config",
    "outline_model",
    "plan_lora",
    "random_allocation",
    "uniform_allocation",
]
