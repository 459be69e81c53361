"""What an adapter's configuration alone knows, as its model card: where its parameters are and how it is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftConfig

from sensitune._markdown import code, escape, table
from sensitune.tuner._adapter_folder import weight_files
from sensitune.tuner._card import CARD_NAME, ModelCard, is_template
from sensitune.tuner._register import spt_type

if TYPE_CHECKING:
    from sensitune.tuner._config import SptConfig
    from sensitune.tuner._plan import SitePlan

_INDEX = "Adapters"
_PAPER = "[He et al., ICCV 2023](https://arxiv.org/abs/2303.08566)"
_FORMS = {"lora": "LoRA", "adapter": "Adapter", "sparse": "sparse", "whole": "whole"}


def adapter_card(config: PeftConfig) -> ModelCard:
    """The model card of an adapter of which only the configuration is known.

    Args:
        config: Of SPT or of one of PEFT's own methods.

    Returns:
        The card; its sections say where the parameters went and, last, how the adapter is loaded.
    """
    base = _base_name(config)
    of_base = f" of {escape(base)}" if base else ""
    if config.peft_type == spt_type():
        placement, tags, imports = _placement(config), ("spt",), ["import sensitune  # registers SPT with PEFT"]
        title = f"An SPT adapter{of_base}"
        summary = f"An adapter of SPT, sensitivity-aware parameter-efficient fine-tuning ({_PAPER})."
        if getattr(config, "rule", None) == "spt":
            summary += " The parameters that the task's loss is most sensitive to are trained."
    else:
        method = str(getattr(config.peft_type, "value", config.peft_type))
        placement, tags, imports = _settings(config), (method.lower(),), []
        title, summary = f"A {escape(method)} adapter{of_base}", "An adapter of one of PEFT's own methods."
    sections = {"Where the parameters went": placement, "How to use it": _loading(base, imports)}
    return ModelCard(title, summary, sections, tags=tags)


def write_adapter_card(folder: Path, config: PeftConfig) -> None:
    """Write the model card of an adapter that PEFT has just saved, in the place of PEFT's template.

    PEFT puts its template into the folder it was given, but an adapter that is not called ``default`` into a folder
    inside: the template becomes a list of those.

    Args:
        folder: The adapter folder; without an adapter's weights in it, nothing is written.
        config: The adapter's configuration.
    """
    if not weight_files(folder):
        return
    is_inside = not (folder / CARD_NAME).is_file()
    adapter_card(config).write(folder)
    if is_inside and not weight_files(folder.parent) and _is_replaceable(folder.parent / CARD_NAME):
        _index(folder.parent).write(folder.parent)


def _is_replaceable(path: Path) -> bool:
    return is_template(path) or (path.is_file() and f"\n# {_INDEX}\n" in path.read_text(encoding="utf-8"))


def _index(folder: Path) -> ModelCard:
    names = sorted(path.parent.name for path in folder.glob(f"*/{CARD_NAME}"))
    listed = "\n".join(f"- [{escape(name)}](<{name}/{CARD_NAME}>)" for name in names)
    return ModelCard(_INDEX, "Every folder here is an adapter with a model card of its own.", {"Folders": listed})


def _base_name(config: PeftConfig) -> str | None:
    """What the base is called, without the folder it lay in on the maker's machine."""
    if name := config.base_model_name_or_path:
        return Path(name).name if Path(name).is_absolute() else str(name)
    described: str | None = getattr(config, "base_description", None)
    return described


def _loading(base: str | None, imports: Iterable[str]) -> str:
    named = f"  # base: {' '.join(base.split())}" if base else ""
    lines = [
        "```python",
        *imports,
        "from peft import PeftModel",
        "",
        f'model = PeftModel.from_pretrained(base, "path or hub id of this adapter"){named}',
        "```",
    ]
    return "\n".join(lines)


def _settings(config: PeftConfig) -> str:
    """Those settings of one of PEFT's own methods that say where its parameters are."""
    lines = []
    for name in ("target_modules", "r", "modules_to_save"):
        if value := getattr(config, name, None):
            values = sorted(value) if isinstance(value, (set, list, tuple)) else [value]
            lines.append(f"- {code(name)}: {', '.join(map(code, values))}")
    return "\n".join(lines) or "Where the method places them."


def _placement(config: Any) -> str:
    whole = f"- Trained whole: {', '.join(map(code, config.modules_to_save))}" if config.modules_to_save else ""
    if config.site_plan is None:
        return "\n".join(line for line in (_without_data(config), whole) if line)
    lines = [
        f"- Placement: {code(config.rule)}" if config.rule else "",
        f"- Budget: {config.budget:,} parameters" if config.budget is not None else "",
        f"- Trained: {sum(plan.num_params for plan in config.plans.values()):,} parameters, the head not counted",
        whole,
    ]
    facts = "\n".join(line for line in lines if line)
    return f"{facts}\n\n{_by_operation(config.plans)}" if config.site_plan else facts


def _without_data(config: SptConfig) -> str:
    form = f"{_FORMS[config.structured_type]} of rank {config.r}" if config.r else f"{config.num_sparse} entries each"
    modules = config.target_modules or ()
    named = ", ".join(map(code, sorted([modules] if isinstance(modules, str) else modules)))
    return f"- Placement: {form}{f' in {named}' if named else ''}, chosen without data"


def _by_operation(plans: Mapping[str, SitePlan]) -> str:
    """A row for what is the same in every block: how many of its sites are tuned, how, and at what cost."""
    groups: dict[str, list[SitePlan]] = {}
    for site, plan in plans.items():
        groups.setdefault(_operation(site), []).append(plan)
    forms = [form for form in _FORMS if any(plan.form == form for plan in plans.values())]
    headings = ["operation", "sites", *(_FORMS[form] for form in forms), "parameters"]
    rows = [_row(code(name), members, forms) for name, members in groups.items()]
    return table(headings, [*rows, _row("all", list(plans.values()), forms)], numeric=headings[1:])


def _operation(site: str) -> str:
    """``blocks.3.attn.qkv.weight[q]`` -> ``blocks.*.attn.qkv[q]``."""
    name, bracket, part = site.partition("[")
    name = name.removesuffix(".weight").removesuffix(".bias")
    return re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", name) + bracket + part


def _row(name: str, plans: Sequence[SitePlan], forms: Sequence[str]) -> list[str]:
    cells = [_count([plan for plan in plans if plan.form == form]) for form in forms]
    return [name, f"{len(plans)}", *cells, f"{sum(plan.num_params for plan in plans):,}"]


def _count(plans: Sequence[SitePlan]) -> str:
    """How many sites are tuned in one form, and with which ranks."""
    if not plans:
        return "·"
    ranks = sorted({plan.size for plan in plans if plan.form in {"lora", "adapter"}})
    return f"{len(plans)}" + (f" (rank {' to '.join(map(str, dict.fromkeys((ranks[0], ranks[-1]))))})" if ranks else "")
