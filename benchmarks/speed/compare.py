"""Hold the results in the working tree (`make bench`) against the committed ones and against their bars.

python benchmarks/speed/compare.py [--against HEAD]
"""

from __future__ import annotations

import argparse
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from methods import CLUSTERED, FLOOR, LORA, PUBLISHED, RANDOM, SHIRA, SUPER_TUNING

RESULTS = Path(__file__).parents[1] / "results"


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        what: What is measured.
        file: Name of the result.
        keys: Where in it.
        bar: What must be reached; None = for information.
        goal: What one would like.
        at_least: Whether more is better.
    """

    what: str
    file: str
    keys: tuple[str, ...]
    bar: float | None = None
    goal: float | None = None
    at_least: bool = False


def step(what: str, ours: str, measure: str, *theirs: str, **bars: float) -> Figure:
    """A line of the step's result."""
    return Figure(what, "step_cost", ("rows", ours, measure, *theirs), **bars)


def default(what: str, measure: str, *theirs: str, **bars: float) -> Figure:
    """A line of the step's result with default settings, of SPT-LoRA."""
    return Figure(what, "step_cost", ("default_settings", PUBLISHED, measure, *theirs), **bars)


FIGURES = (
    default("default: SPT-LoRA step / PEFT LoRA", "step_over", LORA, bar=1.05, goal=1.00),
    default("default: kept bytes / PEFT LoRA", "kept_over", LORA, bar=1.05, goal=1.00),
    default("default: peak of a step / PEFT LoRA", "peak_over", LORA, bar=1.08, goal=1.02),
    default("default: step / biases and norms", "step_over", FLOOR),
    step("SPT-LoRA step / PEFT LoRA", PUBLISHED, "step_over", LORA, bar=1.05, goal=0.98),
    step("SPT-LoRA step / biases and norms", PUBLISHED, "step_over", FLOOR, bar=1.20, goal=1.10),
    step("PEFT LoRA step / biases and norms", LORA, "step_over", FLOOR),
    step("sparse step / SHiRA", CLUSTERED, "step_over", SHIRA, bar=0.90, goal=0.80),
    step("sparse step / Super-Tuning", CLUSTERED, "step_over", SUPER_TUNING, bar=0.90, goal=0.80),
    step("sparse step / biases and norms", CLUSTERED, "step_over", FLOOR),
    step("random sparse step / SHiRA", RANDOM, "step_over", SHIRA, bar=1.0),
    step("SPT-LoRA kept bytes / PEFT LoRA", PUBLISHED, "kept_over", LORA, bar=1.10, goal=1.00),
    step("sparse kept bytes / biases and norms", CLUSTERED, "kept_over", FLOOR, bar=1.05, goal=1.02),
    step("sparse eval forward / plain", CLUSTERED, "eval_forward_over_plain", bar=1.03, goal=1.00),
    Figure("sensitivity / plain passes", "sensitivity_speed", ("over_plain_passes", "sensitivity"), 1.08, 1.03),
    Figure("sensitivity, peak MiB", "sensitivity_speed", ("peak_mib_above_the_model", "sensitivity")),
    Figure("plain passes, peak MiB", "sensitivity_speed", ("peak_mib_above_the_model", "plain passes")),
    Figure(
        "bfloat16 scores, same set",
        "score_dtype",
        ("overlap", "16 batches", "tau 400,000", "kept in bfloat16"),
        0.99,
        at_least=True,
    ),
    Figure("allocate, one budget, s", "allocate_speed", ("seconds", "one budget"), 4.0),
    Figure("allocate, seven budgets, s", "allocate_speed", ("seconds", "seven budgets"), 8.0, 3.0),
    Figure("1 B scores, one budget, s", "allocate_scale", ("rows", "one budget, LoRA", "seconds")),
    Figure("1 B scores, peak MiB", "allocate_scale", ("rows", "one budget, LoRA", "peak_resident_mib"), 4096.0),
    Figure("switch of sparse adapters, ms", "adapter_cost", ("switching", CLUSTERED, "set_adapter_ms"), 20.0, 5.0),
    Figure("merge, SPT-LoRA / PEFT LoRA", "adapter_cost", ("merging", "spt_over_lora"), 1.0),
    Figure("import above peft, s", "import_time", ("seconds", "import sensitune, above that"), 0.3, 0.1),
)


def value(report: dict[str, Any] | None, figure: Figure) -> tuple[float, str] | None:
    """The median, and the median with its range as text; None if the result lacks it."""
    found: Any = report
    for key in figure.keys:
        found = found.get(key) if isinstance(found, dict) else None
    if found is None:
        return None
    if isinstance(found, dict):
        return found["median"], f"{found['median']:.3f} ({found['min']:.3f}-{found['max']:.3f})"
    return float(found), f"{found:.3f}"


def committed(name: str, revision: str) -> dict[str, Any] | None:
    """A committed result, or None."""
    path = f"{revision}:./{name}.json"
    shown = subprocess.run(["git", "show", path], cwd=RESULTS, capture_output=True, text=True, check=False)
    return json.loads(shown.stdout) if shown.returncode == 0 else None


def verdict(figure: Figure, median: float) -> str:
    """Whether the bar and the goal are met."""

    def met(limit: float) -> bool:
        return median >= limit if figure.at_least else median <= limit

    if figure.bar is None:
        return ""
    if figure.goal is not None and met(figure.goal):
        return "goal"
    return "met" if met(figure.bar) else "MISSED"


def line(cells: tuple[str, ...]) -> str:
    """Cells in columns."""
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, (38, 26, 26, 8, 6, 6, 7), strict=True)).rstrip()


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--against", default="HEAD", help="revision of the committed results")
    revision = options.parse_args().against
    names = dict.fromkeys(figure.file for figure in FIGURES)
    files = {name: RESULTS / f"{name}.json" for name in names}
    now = {name: json.loads(path.read_text()) if path.exists() else None for name, path in files.items()}
    then = {name: committed(name, revision) for name in names}
    print(line(("", "now", "committed", "change", "bar", "goal", "")))
    for figure in FIGURES:
        ours, theirs = value(now[figure.file], figure), value(then[figure.file], figure)
        change = f"{ours[0] / theirs[0]:.3f}" if ours and theirs and theirs[0] else ""
        limits = ["" if limit is None else f"{limit:g}" for limit in (figure.bar, figure.goal)]
        found = [("not measured" if one is None else one[1]) for one in (ours, theirs)]
        print(line((figure.what, *found, change, *limits, verdict(figure, ours[0]) if ours else "")))
    for name, report in now.items():
        if report:
            print(f"{name}: {report['date']}, {report['hardware']}, {report.get('clock', 'cpu')} clock")


if __name__ == "__main__":
    main()
