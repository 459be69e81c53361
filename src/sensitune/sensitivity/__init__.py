"""How much each pretrained scalar matters for a task."""

from sensitune.sensitivity._sensitivity import Sensitivity

__all__ = ["Sensitivity"]
