"""Where the time of a training step goes, by kind of operation, next to the floor (biases and norms only).

Time inside torch's operators, forward and backward, by the chosen clock (torch's own profiler knows wall time only).
The methods take turns, and of each the round with the least total is shown. ViT-B/16, batch 8.

    python benchmarks/speed/profile_step.py --clock cpu --threads 1 --output benchmarks/results/profile_step.json
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from measuring import Clock, parser, prepare, publish, timed
from methods import CLASSES, CLUSTERED, DEFAULT_PUBLISHED, FLOOR, LORA, PUBLISHED, adamw, methods, train_step, vit
from torch.utils._python_dispatch import TorchDispatchMode

KINDS = {
    "matrix products": ("mm", "mkldnn", "convolution", "linear"),
    "attention": ("flash_attention", "dot_product", "softmax"),
    "norm and GELU": ("layer_norm", "gelu"),
    "gather and scatter": ("index", "scatter", "gather", "take"),
    "sums over tokens": ("aten.sum",),
    "copies and additions": ("copy", "add.", "add_.", "cat", "clone", "fill", "zero", "contiguous", "mul"),
    "optimiser": ("Optimizer", "_foreach", "lerp", "addcdiv", "addcmul"),
}
REST = "everything else"


def kind_of(name: str) -> str:
    """The first kind whose words occur in an operator's name."""
    return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), REST)


class Watch(TorchDispatchMode):
    """Seconds of every operator that runs, by kind."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.seconds: dict[str, float] = defaultdict(float)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        start = self.clock()
        result = func(*args, **(kwargs or {}))
        self.seconds[kind_of(str(func))] += self.clock() - start
        return result


def milliseconds(step: Callable[[], None], clock: Clock) -> dict[str, float]:
    """Time of a step by kind."""
    with Watch(clock) as watch:
        total = timed(step, clock)
    found = {kind: watch.seconds[kind] for kind in [*KINDS, REST]}
    found |= {"outside of operators": total - sum(found.values()), "total": total}
    return {kind: round(1e3 * seconds, 1) for kind, seconds in found.items()}


def main() -> None:
    """Profile and report."""
    options = parser(__doc__, repeats=3)
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--values", type=int, default=400_000)
    options.add_argument("--methods", nargs="+", default=[FLOOR, LORA, PUBLISHED, CLUSTERED])
    arguments = options.parse_args()
    clock = prepare(arguments)
    images, labels = torch.randn(arguments.batch, 3, 224, 224), torch.randint(CLASSES, (arguments.batch,))
    made = methods(vit, arguments.values, DEFAULT_PUBLISHED)
    models = {name: made[name]() for name in arguments.methods}
    steps = {name: partial(train_step, model, adamw(model), images, labels) for name, model in models.items()}
    rounds = [{name: milliseconds(step, clock) for name, step in steps.items()} for _ in range(arguments.repeats + 1)][
        1:
    ]
    quietest = {name: min((one[name] for one in rounds), key=lambda row: row["total"]) for name in steps}
    publish(arguments, batch=arguments.batch, milliseconds=quietest)


if __name__ == "__main__":
    main()
