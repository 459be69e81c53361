"""Some images of a run's test split, to be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from sensitune.data import labels_of
from sensitune.errors import DataError
from sensitune.runs._run import Run
from sensitune.training import Answers


def images_of_test_split(run: Run, answers: Answers, places: Sequence[int]) -> list[tuple[str, Image.Image]]:
    """Images that a model answered.

    Args:
        run: The run whose model it was.
        answers: What it said of the whole split.
        places: Which of them.

    Returns:
        The name of each file, or the image's number where there are no files, and the image.

    Raises:
        DataError: If the images are not there any more, or are others now.
    """
    import datasets

    splits = run.ingredients.all_data.dataset
    if "test" not in splits or labels_of(splits["test"]) != answers.labels.tolist():
        raise DataError("The test images are not those that the run was tested on.")
    split = splits["test"]
    stored = split.cast_column("image", datasets.Image(decode=False))
    found = []
    for place in places:
        path = stored[place]["image"]["path"]
        found.append((f"test image {place + 1}" if path is None else Path(path).name, split[place]["image"]))
    return found
