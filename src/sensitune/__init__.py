"""Sensitune."""
