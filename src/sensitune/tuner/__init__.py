"""SPT as a PEFT method: an allocation becomes a tuned model.

Structured sites get a LoRA, ``y = W x + b + up(down(dropout(x)))``, or an Adapter,
``y = z + up(gelu(down(dropout(z))))`` with ``z = W x + b``; sparse sites train the selected entries of
``W' = W + S``; vectors and the class token are tuned whole. Every trained value is a delta from the base, so several
adapters add, and disabling restores the base (He et al., *Sensitivity-Aware Visual Parameter-Efficient Fine-Tuning*,
ICCV 2023, section 3.3).

`apply_lora_start` gives a fresh adapter's LoRAs another start than random directions.

Importing this package registers the method with PEFT.

Example:
    >>> import torch
    >>> from peft import get_peft_model
    >>> from sensitune.tuner import SptConfig
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 2))
    >>> tuned = get_peft_model(model, SptConfig(target_modules=["0"], r=2))
    >>> {role: tuple(value.shape) for role, value in tuned.base_model.site_parameters()["0.weight"].items()}
    {'down': (2, 8), 'up': (4, 2)}
"""

from sensitune.tuner._adapter_card import adapter_card
from sensitune.tuner._adapter_folder import check_complete, load_adapter, read_adapter_config
from sensitune.tuner._card import ModelCard
from sensitune.tuner._config import SptConfig
from sensitune.tuner._dequantise import dequantise
from sensitune.tuner._lora_start import apply_lora_start
from sensitune.tuner._model import SptModel
from sensitune.tuner._norms import hold_statistics
from sensitune.tuner._register import register

register(SptConfig, SptModel)

__all__ = [
    "ModelCard",
    "SptConfig",
    "SptModel",
    "adapter_card",
    "apply_lora_start",
    "check_complete",
    "dequantise",
    "hold_statistics",
    "load_adapter",
    "read_adapter_config",
]
