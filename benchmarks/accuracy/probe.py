"""Do the tasks need the pretrained backbone? Linear probes on its features, on a random one's, on pixels, on colours.

    python benchmarks/accuracy/probe.py --output benchmarks/results/accuracy_probe.json
    python benchmarks/accuracy/probe.py --image-size 70 --output benchmarks/results/accuracy_probe_70.json

Multinomial logistic regression on standardised features, its L2 strength chosen on the validation split; accuracy on
(at most 500 pictures of) the test split. Features are kept in the cache: an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import timm
import torch
from datasets import Dataset, disable_progress_bars
from prepare import CACHE, TASKS
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from sensitune.backbones import BackboneSpec, load_backbone
from sensitune.data import ImageTransform, batches, load_data

NUM_BLOCKS = 6
MOST_TEST = 500
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
SPLITS = ("train", "validation", "test")
Extract = Callable[[Tensor], Tensor]


def pretrained(image_size: int) -> Extract:
    """The suite's backbone without its head."""
    spec = BackboneSpec("dinov2_vit_s14_focus", image_size=image_size, num_blocks=NUM_BLOCKS)
    return _features_of(load_backbone(spec, num_classes=2).model)


def untrained(image_size: int) -> Extract:
    """The same architecture with timm's initialisation."""
    torch.manual_seed(0)
    options = {"img_size": image_size, "depth": NUM_BLOCKS, "num_classes": 2}
    return _features_of(timm.create_model("vit_small_patch14_dinov2.lvd142m", **options))


def _features_of(model: nn.Module) -> Extract:
    model.eval().reset_classifier(0)  # type: ignore[operator]
    return model


def pixels(images: Tensor) -> Tensor:
    """16×16 pixels in colour."""
    return functional.adaptive_avg_pool2d(images, 16).flatten(1)


def colours(images: Tensor) -> Tensor:
    """A histogram of 4×4×4 colours."""
    bins = (functional.interpolate(images, 32) - images.min()) / (images.max() - images.min()) * 3.999
    index = (bins.long() * torch.tensor([16, 4, 1]).view(1, 3, 1, 1)).sum(1).flatten(1)
    return functional.one_hot(index, 64).float().mean(1)


SOURCES: dict[str, Callable[[int], Extract]] = {
    "pretrained": pretrained,
    "random": untrained,
    "pixels": lambda image_size: pixels,
    "colours": lambda image_size: colours,
}


@torch.no_grad()
def features(extract: Extract, split: Dataset, image_size: int) -> Tensor:
    """Features of a split's pictures ``[n, d]``."""
    return torch.cat(
        [extract(images).float() for images, _ in batches(split, ImageTransform(image_size), batch_size=50)]
    )


def probe(tables: dict[str, Tensor], labels: dict[str, Tensor]) -> float:
    """Test accuracy of the regression whose strength is best on the validation split."""
    mean, std = tables["train"].mean(0), tables["train"].std(0).clamp_min(1e-6)
    tables = {name: (table - mean) / std for name, table in tables.items()}
    num_classes = int(max(each.max() for each in labels.values())) + 1
    fitted = [fit(tables["train"], labels["train"], num_classes, strength) for strength in STRENGTHS]
    chosen = max(fitted, key=lambda each: accuracy(each, tables["validation"], labels["validation"]))
    return accuracy(chosen, tables["test"], labels["test"])


def fit(table: Tensor, labels: Tensor, num_classes: int, strength: float) -> tuple[Tensor, Tensor]:
    """Weight ``[classes, d]`` and bias of the least penalised cross-entropy."""
    weight = torch.zeros(num_classes, table.shape[1], requires_grad=True)
    bias = torch.zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(table @ weight.T + bias, labels) + 0.5 * strength * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(objective)
    return weight.detach(), bias.detach()


def accuracy(fitted: tuple[Tensor, Tensor], table: Tensor, labels: Tensor) -> float:
    """Share of right answers."""
    weight, bias = fitted
    return float(((table @ weight.T + bias).argmax(1) == labels).float().mean())


def measure(task: str, cache: Path, image_size: int) -> dict[str, float]:
    """Accuracy of every source of features on a task, and of always answering the most frequent class."""
    data = load_data(cache / "tasks" / task).dataset
    splits = {
        name: data[name].select(range(min(len(data[name]), MOST_TEST if name == "test" else 10**9))) for name in SPLITS
    }
    labels = {name: torch.tensor(split["label"][:]) for name, split in splits.items()}
    found = {"majority": float(labels["test"].bincount().max() / len(labels["test"]))}
    for source, make in SOURCES.items():
        path = cache / "features" / f"{task}-{source}-{image_size}.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            extract = make(image_size)
            save_file({name: features(extract, split, image_size) for name, split in splits.items()}, path)
        found[source] = probe(load_file(path), labels)
    return found


def main() -> None:
    """Print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--image-size", type=int, default=98)
    parser.add_argument("--output", type=Path, default=None)
    arguments = parser.parse_args()
    disable_progress_bars()
    columns = ("majority", "colours", "pixels", "random", "pretrained")
    print(f"| task | {' | '.join(columns)} |\n| --- |{' ---: |' * len(columns)}", flush=True)
    rows = {}
    for task in TASKS:
        rows[task] = {
            name: round(100 * value, 1) for name, value in measure(task, arguments.cache, arguments.image_size).items()
        }
        print(f"| {task} | {' | '.join(str(rows[task][name]) for name in columns)} |", flush=True)
    if arguments.output is not None:
        command = f"python benchmarks/accuracy/probe.py --image-size {arguments.image_size}"
        header = {"command": command, "date": datetime.now(UTC).date().isoformat()}
        arguments.output.write_text(json.dumps(header | {"test_accuracy": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
