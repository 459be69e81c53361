"""Time and memory of one training step: SPT against PEFT's LoRA and sparse methods, biases and norms, and everything.

ViT-B/16 at 224 px, float32, batch 8, head of 100, random weights (the cost does not depend on them). All methods take
turns in one process, so that every ratio is between neighbours in time.

    python benchmarks/speed/step_cost.py --repeats 7 --output benchmarks/results/step_cost.json
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import interleaved, kept_for_backward, parser, prepare, publish, ratio, spread
from methods import (
    CLASSES,
    DEFAULT_PUBLISHED,
    PEERS,
    adamw,
    methods,
    predict,
    train_step,
    trainable_without_head,
    vit,
)

PLAIN = "plain"


def main() -> None:
    """Measure and report."""
    options = parser(__doc__, repeats=7)
    options.add_argument("--published", type=Path, default=DEFAULT_PUBLISHED, help="a published allocation, .pth")
    options.add_argument("--depth", type=int, default=12)
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--values", type=int, default=400_000)
    options.add_argument("--only", nargs="*", default=None, help="substrings of the methods to run")
    arguments = options.parse_args()
    clock = prepare(arguments)
    images, labels = torch.randn(arguments.batch, 3, 224, 224), torch.randint(CLASSES, (arguments.batch,))
    make = partial(vit, depth=arguments.depth)
    known = methods(make, arguments.values, arguments.published if arguments.depth == 12 else None)
    chosen = [name for name in known if not arguments.only or any(part in name for part in arguments.only)]
    models = {name: known[name]() for name in chosen}
    kept = {name: kept_for_backward(model, images, labels) for name, model in models.items()}
    steps = interleaved(
        {name: partial(train_step, model, adamw(model), images, labels) for name, model in models.items()},
        arguments.repeats,
        clock,
    )
    forwards = interleaved(
        {name: partial(predict, model, images) for name, model in {**models, PLAIN: make()}.items()},
        arguments.repeats,
        clock,
    )

    def row(name: str) -> dict[str, Any]:
        others = [other for other in PEERS if other in models and other != name]
        return {
            "trainable_without_head": trainable_without_head(models[name]),
            "kept_for_backward_mb": round(kept[name] / 1e6, 1),
            "kept_over": {other: round(kept[name] / kept[other], 4) for other in others},
            "step_seconds": spread(steps[name]),
            "step_over": {other: ratio(steps[name], steps[other]) for other in others},
            "eval_forward_over_plain": ratio(forwards[name], forwards[PLAIN]),
        }

    publish(arguments, batch=arguments.batch, depth=arguments.depth, rows={name: row(name) for name in models})


if __name__ == "__main__":
    main()
