"""Where plain LoRAs should go, for trainers that never heard of us, and whether it matters where.

    batches + model ──estimate_sensitivity──▶ Sensitivity with halves ──advise(budget)──▶ Advice ──write_for──▶ files

An `Advice` holds the plan (`sensitune.plan_lora`), how far it depends on the batches, how much of the score it catches
above its share of the parameters, and what it costs. Where the scores are flat or the placement does not stay under
resampling, it says that uniform LoRA is fine.

Example:
    >>> import torch
    >>> from torch import nn
    >>> from sensitune import estimate_sensitivity
    >>> from sensitune.advice import advise
    >>> body = [nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)]
    >>> class Model(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.body, self.head = nn.Sequential(*body), nn.Linear(8, 3)
    ...     def forward(self, x):
    ...         return self.head(self.body(x))
    >>> batches = [(torch.randn(4, 8), torch.tensor([0, 1, 2, 0])) for _ in range(4)]
    >>> sensitivity = estimate_sensitivity(Model(), batches, keep_halves=True)
    >>> advise(sensitivity, budget=40).plan.trainable_params <= 40
    True
"""

from sensitune.advice._advice import Advice, advise
from sensitune.advice._language import load_language_model
from sensitune.advice._text import TextData, is_text, load_text, text_batches
from sensitune.advice._write import ONE_RANK, TrainerName, write_for

__all__ = [
    "ONE_RANK",
    "Advice",
    "TextData",
    "TrainerName",
    "advise",
    "is_text",
    "load_language_model",
    "load_text",
    "text_batches",
    "write_for",
]
