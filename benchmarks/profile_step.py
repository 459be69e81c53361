"""Where the time of a training step goes, by kind of operation, next to the floor (biases and norms only).

Self CPU time of torch's operators, which counts waiting too: the methods take turns, and of each the round with the
least total is shown. ViT-B/16, batch 8.

    python benchmarks/profile_step.py --threads 1 --output benchmarks/results/profile_step.json
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial

import torch
from measuring import parser, prepare, publish
from methods import CLASSES, CLUSTERED, DEFAULT_PUBLISHED, FLOOR, LORA, PUBLISHED, adamw, methods, train_step, vit
from torch.profiler import ProfilerActivity, profile

KINDS = {
    "matrix products": ("aten::addmm", "aten::mm", "aten::bmm", "aten::addmm_", "aten::sampled_addmm", "mkldnn"),
    "attention": ("flash_attention", "dot_product", "softmax"),
    "norm and GELU": ("layer_norm", "gelu"),
    "gather and scatter": ("index", "scatter", "gather", "take"),
    "sums over tokens": ("aten::sum",),
    "copies and additions": ("copy", "aten::add", "aten::cat", "clone", "fill", "zero", "contiguous", "aten::mul"),
    "optimiser": ("Optimizer", "_foreach", "lerp", "addcdiv", "addcmul"),
}
REST = "everything else"


def kind_of(name: str) -> str:
    """The first kind whose words occur in an operator's name."""
    return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), REST)


def milliseconds(step: Callable[[], None]) -> dict[str, float]:
    """Self CPU time of a step by kind."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step()
    found: dict[str, float] = defaultdict(float)
    for event in profiled.key_averages():
        found[kind_of(event.key)] += event.self_cpu_time_total / 1e3
    return {kind: round(found[kind], 1) for kind in [*KINDS, REST]} | {"total": round(sum(found.values()), 1)}


def main() -> None:
    """Profile and report."""
    options = parser(__doc__, repeats=3)
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--values", type=int, default=400_000)
    options.add_argument("--methods", nargs="+", default=[FLOOR, LORA, PUBLISHED, CLUSTERED])
    arguments = options.parse_args()
    prepare(arguments)
    images, labels = torch.randn(arguments.batch, 3, 224, 224), torch.randint(CLASSES, (arguments.batch,))
    made = methods(vit, arguments.values, DEFAULT_PUBLISHED)
    models = {name: made[name]() for name in arguments.methods}
    steps = {name: partial(train_step, model, adamw(model), images, labels) for name, model in models.items()}
    rounds = [{name: milliseconds(step) for name, step in steps.items()} for _ in range(arguments.repeats + 1)][1:]
    quietest = {name: min((one[name] for one in rounds), key=lambda row: row["total"]) for name in steps}
    publish(arguments, batch=arguments.batch, milliseconds=quietest)


if __name__ == "__main__":
    main()
