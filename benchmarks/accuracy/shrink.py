r"""The suite's pictures at the size that a profile reads them, decoded and resized once for all its runs.

    python benchmarks/accuracy/prepare.py
    python benchmarks/accuracy/shrink.py --image-size 70

Each task becomes a folder of `datasets` beside its own, ``tasks_70``, with lossless pictures of 70 × 70 pixels, equal
to the bit to what a run makes of the originals, and with the 500 test pictures that the study tests on.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import datasets
from labelled import Example
from PIL import Image
from prepare import CACHE, TASKS, to_split

from sensitune.data import DataSettings, ImageTransform, load_data

MOST_TEST = 500


def shrink(task: Path, target: Path, image_size: int) -> None:
    """Write a task with small pictures.

    Args:
        task: The folder that `prepare.py` made.
        target: The folder to make.
        image_size: Side of the pictures in pixels.
    """
    data = load_data(DataSettings(str(task), max_test=MOST_TEST))
    transform = ImageTransform(image_size)
    content = datasets.DatasetDict()
    for name, split in data.dataset.items():
        examples = [
            Example(Image.fromarray(transform.prepare(item["image"]).permute(1, 2, 0).numpy()), class_name, str(index))
            for index, item in enumerate(split)
            for class_name in (data.class_names[item["label"]],)
        ]
        content[name] = to_split(examples, data.class_names)
    unfinished = target.with_name(f".{target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    content.save_to_disk(str(unfinished))
    unfinished.rename(target)


def main() -> None:
    """Make the tasks that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, required=True)
    parser.add_argument("--cache", type=Path, default=CACHE)
    arguments = parser.parse_args()
    datasets.disable_progress_bars()
    for name in TASKS:
        target = arguments.cache / f"tasks_{arguments.image_size}" / name
        if not target.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
            shrink(arguments.cache / "tasks" / name, target, arguments.image_size)
            print(name, flush=True)


if __name__ == "__main__":
    main()
