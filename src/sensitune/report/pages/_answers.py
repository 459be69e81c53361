"""What a model said of its test images: by class, and where it was surest and wrong."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sensitune.errors import ArgumentError
from sensitune.report.pages._charts import confusion_chart

if TYPE_CHECKING:
    from PIL import Image

_DRAWN_CLASSES = 30  # more are no picture any more
_PIXELS = 112


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """An image that was taken for another class.

    Attributes:
        name: Of its file.
        label: The right class.
        prediction: The class it was taken for.
        confidence: How probable that was, from 0 to 1.
        image: The image; None leaves it out.
    """

    name: str
    label: int
    prediction: int
    confidence: float
    image: Image.Image | None = None


@dataclass(frozen=True, kw_only=True)
class ImageAnswers:
    """What a page shows of a model's answers.

    Attributes:
        class_names: Name of every class id.
        labels: The right class of every test image.
        predictions: The class it was taken for.
        mistakes: Those that are shown one by one.
        note: What a reader must know, such as why there are no images.

    Raises:
        ArgumentError: If there is not one prediction per label, or a class has no name.
    """

    class_names: Sequence[str]
    labels: Sequence[int]
    predictions: Sequence[int]
    mistakes: Sequence[Mistake] = ()
    note: str = ""

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.predictions):
            raise ArgumentError(
                f"There must be one prediction per label. Got {len(self.predictions)} and {len(self.labels)}."
            )
        if not all(0 <= each < len(self.class_names) for each in (*self.labels, *self.predictions)):
            raise ArgumentError(f"Every class must be one of the {len(self.class_names)} that have a name.")


def confusion_of(answers: ImageAnswers) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """The confusion matrix as a chart, and what is in it.

    Args:
        answers: What the model said.

    Returns:
        The chart, None if there are too many classes to draw; and a row per cell that is not empty.
    """
    if len(answers.class_names) > _DRAWN_CLASSES:
        return None, []
    totals = Counter(answers.labels)
    rows = [
        {"truth": answers.class_names[label], "said": answers.class_names[said], "count": count}
        | {"share": count / totals[label]}
        for (label, said), count in sorted(Counter(zip(answers.labels, answers.predictions, strict=True)).items())
    ]
    return confusion_chart(answers.class_names), rows


def by_class(answers: ImageAnswers) -> list[list[str]]:
    """For every class its name, images, how many of them are right, their share, and what else they are taken for."""
    said: dict[int, Counter[int]] = {}
    for label, prediction in zip(answers.labels, answers.predictions, strict=True):
        said.setdefault(label, Counter())[prediction] += 1
    rows = []
    for label, name in enumerate(answers.class_names):
        found = said.get(label, Counter())
        total, right = found.total(), found[label]
        others = [f"{answers.class_names[other]} ({count:,})" for other, count in found.most_common() if other != label]
        share = f"{right / total:.1%}" if total else "–"
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        rows.append([name, f"{total:,}", f"{right:,}", share, (", ".join(others[:3]) or "–") + more])
    return rows


def shown_mistakes(answers: ImageAnswers) -> list[dict[str, str]]:
    """The mistakes in words, and their images as small JPEG data URIs."""
    return [
        {
            "name": each.name,
            "truth": answers.class_names[each.label],
            "said": answers.class_names[each.prediction],
            "confidence": f"{each.confidence:.0%}",
            "picture": "" if each.image is None else _thumbnail(each.image),
        }
        for each in answers.mistakes
    ]


def _thumbnail(image: Image.Image) -> str:
    small = image.convert("RGB")
    small.thumbnail((_PIXELS, _PIXELS))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=75)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
