"""Sensitune."""

from sensitune.tuner import SptConfig

__all__ = ["SptConfig"]
