"""How much of the selected set stays the same when the scores are kept in bfloat16 instead of float32.

The demo's weights (DINOv2 ViT-S/14, saliency-tuned) and photographs, as the demo uses them: 98 px, batches in file
order. The share is |selected by both| / |selected|, at several tau; below it, the same for sparse allocations of a
budget.

    python benchmarks/speed/score_dtype.py --output benchmarks/results/score_dtype.json
"""

from __future__ import annotations

import torch
from measuring import parser, prepare, publish

from sensitune.allocation import Allocation, allocate
from sensitune.backbones import BackboneSpec, load_backbone
from sensitune.data import ImageTransform, batches, load_data
from sensitune.sensitivity import Sensitivity, estimate_sensitivity

TAUS = (100_000, 200_000, 400_000, 1_000_000)


def selected(sensitivity: Sensitivity, tau: int) -> Allocation:
    """The top tau as single scalars."""
    return allocate(sensitivity, tau=tau, structured=None, whole_vectors=False)


def overlap(first: Allocation, second: Allocation) -> float:
    """Share of the first's entries that the second has too."""
    empty = torch.empty(0, dtype=torch.int64)
    both = sum(int(torch.isin(indices, second.sparse.get(site, empty)).sum()) for site, indices in first.sparse.items())
    return both / first.sparse_params


def main() -> None:
    """Score twice, compare, report."""
    options = parser(__doc__, repeats=1)
    options.add_argument("--num-batches", type=int, nargs="+", default=[4, 16])
    options.add_argument("--batch-size", type=int, default=8)
    options.add_argument("--image-size", type=int, default=98)
    options.add_argument("--blocks", type=int, default=None, help="keep the first blocks only")
    arguments = options.parse_args()
    prepare(arguments)
    data = load_data("demo")
    spec = BackboneSpec("dinov2_vit_s14_focus", image_size=arguments.image_size, num_blocks=arguments.blocks)
    backbone = load_backbone(spec, num_classes=len(data.class_names))
    transform = ImageTransform(backbone.image_size, backbone.mean, backbone.std, backbone.interpolation)
    rows = {}
    for number in arguments.num_batches:
        images = list(batches(data.dataset["train"], transform, batch_size=arguments.batch_size, num_batches=number))
        exact = estimate_sensitivity(backbone.model, images)
        rounded = estimate_sensitivity(backbone.model, images, score_dtype=torch.bfloat16)
        once = Sensitivity({name: score.bfloat16() for name, score in exact.scores.items()}, exact.outline, {})
        rows[f"{number} batches"] = {
            f"tau {tau:,}": {
                "kept in bfloat16": round(overlap(selected(exact, tau), selected(rounded, tau)), 5),
                "rounded once at the end": round(overlap(selected(exact, tau), selected(once, tau)), 5),
            }
            for tau in TAUS
        }
    publish(arguments, scores=sum(site.numel for site in exact.sites), overlap=rows)


if __name__ == "__main__":
    main()
