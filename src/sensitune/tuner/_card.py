"""What an adapter's README says about it: the base, the placement, the size, and how to load it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sensitune._files import atomic_write

if TYPE_CHECKING:
    from sensitune.tuner._config import SptConfig

_HEADING = "## Sensitune"
_FILE = "README.md"


def write_card_section(folder: Path, config: SptConfig) -> None:
    """Put Sensitune's section into the model card beside an adapter, in the place of an older one.

    Args:
        folder: The adapter folder; without a card in it, nothing is written.
        config: The adapter's configuration.
    """
    path = folder / _FILE
    if not path.is_file():
        return
    text = path.read_text(encoding="utf-8")
    before, found, after = text.partition(f"{_HEADING}\n")
    rest = after[after.index("\n## ") + 1 :] if found and "\n## " in after else ""
    with atomic_write(path) as temporary:
        temporary.write_text(before.rstrip("\n") + "\n\n" + _section(config) + ("\n" + rest if rest else ""), "utf-8")


def _section(config: SptConfig) -> str:
    base = config.base_model_name_or_path or config.base_description or "the model it was trained on"
    return "\n".join([
        _HEADING,
        "",
        "An adapter of SPT (sensitivity-aware parameter-efficient fine-tuning). Importing `sensitune` registers the",
        "method with PEFT, so import it before the adapter is loaded:",
        "",
        "```python",
        "import sensitune",
        "from peft import PeftModel",
        "",
        f'model = PeftModel.from_pretrained(base, "path or hub id of this adapter")  # base: {base}',
        "```",
        "",
        f"- Base: {base}",
        *_size(config),
        "",
    ])  # fmt: skip


def _size(config: SptConfig) -> list[str]:
    if config.site_plan is None:
        form = f"{config.structured_type} of rank {config.r}" if config.r else f"{config.num_sparse} entries per module"
        return [f"- Placement: {form}, chosen without data"]
    plans = config.plans.values()
    forms = [plan.form for plan in plans]
    counts = ", ".join(
        f"{forms.count(form)} {form}" for form in ("lora", "adapter", "sparse", "whole") if form in forms
    )
    ranks = ", ".join(map(str, sorted({plan.size for plan in plans if plan.form in {"lora", "adapter"}}))) or "none"
    budget = "none" if config.budget is None else f"{config.budget:,} parameters"
    return [
        f"- Placement: {config.rule}; sites: {counts or 'none'}; rank {ranks}",
        f"- Budget: {budget}",
        f"- Trained parameters: {config.trainable_params:,}, the head not counted",
    ]
