"""Plain LoRA for whoever never heard of us: a configuration before training, an adapter folder after it.

A LoRA of rank r on a matrix W ``[out, in]`` is ``W + (alpha / r) · B A`` with A ``[r, in]`` and B ``[out, r]``; here
``alpha / r`` is 1 unless asked otherwise. PEFT names modules by suffix and by regular expression; what is written here
matches exactly the modules that are meant.

    Sensitivity ──plan_lora(budget)──▶ LoraPlan ──.config──▶ any trainer that takes a LoraConfig
    tuned model ──export_lora──▶ adapter folder ──PeftModel.from_pretrained──▶ the same outputs, without Sensitune

Example:
    >>> import timm, torch
    >>> import sensitune
    >>> model = timm.create_model("vit_tiny_patch16_224", num_classes=10, depth=1)
    >>> batches = [(torch.randn(2, 3, 224, 224), torch.tensor([0, 1]))]
    >>> sensitivity = sensitune.estimate_sensitivity(model, batches)
    >>> plan = sensitune.plan_lora(sensitivity, budget=10_000)
    >>> 10_000 - 4 * 192 < plan.trainable_params <= 10_000
    True
    >>> type(plan.config).__name__
    'LoraConfig'
"""

from sensitune.tuner.plain_lora._export import LoraExport, export_lora
from sensitune.tuner.plain_lora._plan import LoraPlan, lora_config, plan_lora

__all__ = ["LoraExport", "LoraPlan", "export_lora", "lora_config", "plan_lora"]
