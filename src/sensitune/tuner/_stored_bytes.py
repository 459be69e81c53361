"""While adapters are in a model, no layer of it rearranges what it stores."""

from __future__ import annotations

from torch import nn

from sensitune.errors import ModelError
from sensitune.sites import allow_repacking, repacked_by, stop_repacking

_STOPPED = "spt_stopped_repacking"


def keep_stored_bytes(model: nn.Module) -> None:
    """Have no layer of a model rearrange its stored bytes for inference: no gradient would come through in training.

    Args:
        model: The model that gets an adapter.

    Raises:
        ModelError: If one has done so already.
    """
    for name, module in model.named_modules():
        if reason := repacked_by(module):
            raise ModelError(f"`{name}` {reason}.")
    vars(model).setdefault(_STOPPED, []).extend(module for module in model.modules() if stop_repacking(module))


def release_stored_bytes(model: nn.Module) -> None:
    """Undo `keep_stored_bytes`, where all adapters go.

    Args:
        model: The model that the adapters were in.
    """
    for module in vars(model).pop(_STOPPED, []):
        allow_repacking(module)
