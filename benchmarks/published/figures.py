"""Where the authors' published allocations put their modules: share of structured sites by block and by operation.

    python benchmarks/published/figures.py published/*_lora_*.pth --output docs/images

groups the files by task (what stands before ``_lora`` or ``_adapter`` in their names), adds up the modules of a task's
files, here its four budgets, and writes ``published_by_block.png`` and ``published_by_operation.png``. It is what the
paper (He et al., ICCV 2023) shows of its allocations, drawn from the very files. Takes 10 seconds on one CPU core.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import timm
import torch

from sensitune.allocation import Allocation, load_published_allocation
from sensitune.report import BLUE, GREEN, ORANGE, RULE, new_figure, style
from sensitune.sites import Site, outline_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = (BLUE, ORANGE, GREEN)
OPERATIONS = ("q", "k", "v", "proj", "fc1", "fc2")


NAMES = {"cifar": "CIFAR-100", "patch_camelyon": "Camelyon", "clevr_dist": "CLEVR-distance"}


def structured_share(allocations: Sequence[Allocation], group: Callable[[Site], str]) -> dict[str, float]:
    """Share of the structured sites in each group, in percent."""
    counts = Counter(group(each.site(name)) for each in allocations for name in each.structured)
    return {name: 100 * count / counts.total() for name, count in counts.items()}


def draw(shares: Mapping[str, Mapping[str, float]], groups: Sequence[str], *, title: str, label: str) -> Figure:
    """Bars side by side, one colour per task."""
    with style():
        figure, axes = new_figure(7.2, 3.4, title=title, subtitle="% of a task's modules")
        width = 0.8 / len(shares)
        for turn, ((task, share), colour) in enumerate(zip(shares.items(), COLOURS, strict=False)):
            places = [index + (turn - (len(shares) - 1) / 2) * width for index in range(len(groups))]
            axes.bar(places, [share.get(name, 0.0) for name in groups], 0.9 * width, color=colour, label=task)
        axes.set_xticks(range(len(groups)), groups)
        axes.set_xlabel(label)
        axes.grid(axis="y", color=RULE, linewidth=0.8)
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        axes.legend(frameon=False, loc="upper right", ncols=len(shares), bbox_to_anchor=(1, 1.17), fontsize=8)
    return figure


def by_task(files: Sequence[Path]) -> dict[str, list[Path]]:
    """The files of each task, in the order in which the tasks first come."""
    tasks: dict[str, list[Path]] = {}
    for path in files:
        task = re.split("_lora|_adapter", path.stem)[0]
        tasks.setdefault(NAMES.get(task, task), []).append(path)
    return {name: tasks[name] for name in [*(name for name in NAMES.values() if name in tasks), *tasks]}


def main() -> None:
    """Read the files and write the two figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, help="published .pth files of up to three tasks")
    parser.add_argument("--output", type=Path, default=Path(), help="folder of the figures")
    chosen = parser.parse_args()
    tasks = by_task(chosen.files)
    if len(tasks) > len(COLOURS):
        parser.error(f"files of at most {len(COLOURS)} tasks can be told apart, got {', '.join(tasks)}")
    with torch.device("meta"):  # only names and shapes are needed
        outline = outline_model(timm.create_model("vit_base_patch16_224", num_classes=100))
    allocations = {name: [load_published_allocation(path, outline) for path in files] for name, files in tasks.items()}
    chosen.output.mkdir(parents=True, exist_ok=True)
    views = {
        "block": (lambda site: str(site.block), [str(block) for block in range(12)]),
        "operation": (lambda site: site.operation, list(OPERATIONS)),
    }
    for view, (group, groups) in views.items():
        shares = {name: structured_share(each, group) for name, each in allocations.items()}
        figure = draw(shares, groups, title=f"Structured sites by {view}", label=view)
        path = chosen.output / f"published_by_{view}.png"
        with style():
            figure.savefig(path, dpi=150, facecolor="white")
        print(path, {name: {key: round(share.get(key, 0), 1) for key in groups} for name, share in shares.items()})


if __name__ == "__main__":
    main()
