"""Where a model can be tuned."""

from sensitune.sites._types import Kind, ModelOutline, Site

__all__ = ["Kind", "ModelOutline", "Site"]
