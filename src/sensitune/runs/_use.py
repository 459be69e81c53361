"""What a trained adapter is for: predictions, and a plain checkpoint."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from PIL import Image
from torch import Tensor

from sensitune._files import refuse_overwriting
from sensitune._schema import to_plain
from sensitune.backbones import check_folder, local_weights, of_transformers, save_checkpoint, save_folder
from sensitune.data import open_image as open_undecoded
from sensitune.errors import ArgumentError, DataError
from sensitune.runs._folder import RunFolder
from sensitune.training import AdapterManifest, load_tuned, predict_probabilities


@dataclass(frozen=True)
class Predictions:
    """The classes of some images.

    Attributes:
        files: The images.
        class_names: Name of every class id.
        probabilities: [images, classes], float32.
        skipped: Images that could not be read.
    """

    files: tuple[Path, ...]
    class_names: tuple[str, ...]
    probabilities: Tensor = field(repr=False, compare=False)
    skipped: tuple[Path, ...] = ()

    def best(self, index: int) -> tuple[str, float]:
        """The most probable class of an image and its probability.

        Args:
            index: Which of `files`.

        Returns:
            The class name and the probability.
        """
        probability, label = self.probabilities[index].max(0)
        return self.class_names[int(label)], float(probability)


def predict(
    adapter: str | os.PathLike[str],
    images: Sequence[str | os.PathLike[str]],
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    batch_size: int = 64,
    device: str = "auto",
    skip_unreadable: bool = False,
    max_pixels: int | None = None,
) -> Predictions:
    """Predict from an adapter folder alone plus its backbone.

    Args:
        adapter: An adapter folder of a run.
        images: Image files.
        checkpoint: The base's weight file, if it has moved or the adapter has left its run folder.
        batch_size: Images per forward pass.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
        skip_unreadable: Leave damaged images out instead of stopping at the first.
        max_pixels: Pixels that an image may have; None is Pillow's limit, 89 million.

    Returns:
        The predictions, in the order of `images`.

    Raises:
        DataError: If there are no images, or one cannot be read.
    """
    model, manifest = load_tuned(adapter, checkpoint=checkpoint or recorded_checkpoint(adapter))
    read: list[Path] = []
    skipped: list[Path] = []

    def decoded() -> Iterator[Image.Image]:
        for path in map(Path, images):
            try:
                image = open_image(path, max_pixels=max_pixels)
            except DataError:
                if not skip_unreadable:
                    raise
                skipped.append(path)
            else:
                read.append(path)
                yield image

    probabilities = predict_probabilities(model, decoded(), manifest.transform, batch_size=batch_size, device=device)
    return Predictions(tuple(read), manifest.class_names, probabilities, tuple(skipped))


def open_image(path: Path, *, max_pixels: int | None = None) -> Image.Image:
    """Decode an image whole.

    Args:
        path: The file.
        max_pixels: Pixels that it may have; None is Pillow's limit, 89 million.

    Returns:
        The image.

    Raises:
        DataError: If it is missing, damaged, too large, or not an image.
    """
    try:
        with open_undecoded(path, max_pixels=max_pixels) as image:
            image.load()
            return image
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
        raise DataError(
            f"The image {path} cannot be read ({error}). Remove it from the list, or use --skip-unreadable."
        ) from error


def merge(
    adapter: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Path:
    """Fold an adapter into its backbone and write a plain checkpoint, head included.

    Args:
        adapter: An adapter folder of a run.
        output: The file to write, which must end in ``.safetensors``; of a model of transformers, a new folder.
        checkpoint: The base's weight file or folder, if it has moved or the adapter has left its run folder.

    Returns:
        The file or folder.

    Raises:
        ArgumentError: If `output` is one of the files that are read, or has another suffix.
    """
    base = checkpoint or recorded_checkpoint(adapter)
    if of_transformers(AdapterManifest.load(adapter).backbone):
        return _merge_into_folder(adapter, output, base)
    refuse_overwriting(output, [adapter, *([] if base is None else [base])])
    if Path(output).suffix != ".safetensors":
        raise ArgumentError(f"`output` of a merged checkpoint must end in .safetensors. Got {os.fspath(output)!r}.")
    model, manifest = load_tuned(adapter, checkpoint=base)
    save_checkpoint(
        model.merge_and_unload(safe_merge=True),
        output,
        spec=manifest.backbone,
        class_names=manifest.class_names,
        preprocessing=to_plain(manifest.transform),
        metadata=asdict(manifest.origin),
    )
    return Path(output)


def _merge_into_folder(
    adapter: str | os.PathLike[str], output: str | os.PathLike[str], base: str | os.PathLike[str] | None
) -> Path:
    check_folder(output)
    refuse_overwriting(Path(output) / "config.json", [adapter, *([] if base is None else [base])])
    model, manifest = load_tuned(adapter, checkpoint=base)
    transform = manifest.transform
    save_folder(
        model.merge_and_unload(safe_merge=True),
        output,
        class_names=manifest.class_names,
        image_size=transform.image_size,
        mean=transform.mean,
        std=transform.std,
        interpolation=transform.interpolation,
        resize=transform.resize,
    )
    return Path(output)


def recorded_checkpoint(adapter: str | os.PathLike[str]) -> str | None:
    """Where the run around an adapter folder was given its weights: the adapter itself knows their name alone."""
    run = Path(adapter).resolve().parent
    return local_weights(RunFolder.load(run).config.backbone) if (run / "run.yaml").is_file() else None
