"""Where a budget of trainable parameters goes."""

from sensitune.allocation._allocation import Allocation
from sensitune.allocation._cost import StructuredType, module_params

__all__ = ["Allocation", "StructuredType", "module_params"]
