"""A model card: the README.md of an adapter folder, written whole, what others wrote in it kept."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from sensitune._files import atomic_write
from sensitune._schema import dump_yaml, parse_yaml
from sensitune.errors import AdapterFileError

CARD_NAME: Final = "README.md"
_END = "<!-- Sensitune writes anew what is above this line, and keeps what is below. -->"
_FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)\r?\n---\r?\n", re.DOTALL)
# PEFT looks for this heading and its own line, and adds them to every page where they are missing.
_VERSIONS = "### Framework versions"
_ADDED_BY_PEFT = re.compile(rf"\s*{_VERSIONS}\s+- PEFT \S+\s*\Z")


@dataclass(frozen=True)
class ModelCard:
    """A model card, before it is written.

    Attributes:
        title: Its first heading, in Markdown.
        summary: What the adapter is, in Markdown.
        sections: Heading -> Markdown, in their order; the versions follow.
        metadata: What it says to programs, such as ``base_model``, beside ``library_name`` and the tags.
        tags: Words by which it is found, beside "sensitune".
        packages: Whose versions it says, beside PEFT's.
    """

    title: str
    summary: str
    sections: Mapping[str, str]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    tags: Sequence[str] = ()
    packages: Sequence[str] = ("sensitune", "torch")

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write ``README.md`` in the place of PEFT's template or of an older card.

        What others wrote is kept: their text below a mark at the end, their settings and tags in the front matter.

        Args:
            folder: The adapter folder.

        Raises:
            AdapterFileError: If there is a card that cannot be read.
        """
        path = Path(folder) / CARD_NAME
        metadata, text = _read(path) if path.is_file() else ({}, "")
        tags = sorted({*_texts(metadata.get("tags")), "sensitune", *self.tags})
        metadata |= {"library_name": "peft", **self.metadata, "tags": tags}
        front = dump_yaml(metadata)
        sections = [part for heading, section in self.sections.items() for part in (f"## {heading}", section)]
        parts = [f"# {self.title}", self.summary, *sections, _versions(self.packages), _END, _of_others(text)]
        page = "\n\n".join(part for part in parts if part)
        with atomic_write(path) as temporary:
            temporary.write_text(f"---\n{front}---\n\n{page}\n", encoding="utf-8")


def is_template(path: Path) -> bool:
    """Whether a page is the template that PEFT starts model cards with, as yet unfilled.

    Args:
        path: The page.

    Returns:
        False also where there is none.
    """
    return path.is_file() and _is_template(_read(path)[1])


def _is_template(text: str) -> bool:
    from huggingface_hub import ModelCard as HubCard
    from huggingface_hub import ModelCardData

    def written(page: str) -> list[str]:
        """The lines but for blank ones and the versions."""
        lines = (line.strip() for line in page.splitlines())
        return [line for line in lines if line and line != _VERSIONS and not line.startswith("- PEFT ")]

    return written(text) == written(HubCard.from_template(ModelCardData()).text)


def _of_others(text: str) -> str:
    """What neither Sensitune nor PEFT wrote."""
    _, ours, after = text.partition(_END)
    if ours:
        return after.strip()
    return "" if _is_template(text) else _ADDED_BY_PEFT.sub("", text).strip()


def _versions(packages: Sequence[str]) -> str:
    lines = [f"- PEFT {version('peft')}", *(f"- {package} {version(package)}" for package in packages)]
    return f"{_VERSIONS}\n\n" + "\n".join(lines)


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """Front matter and text of a page."""
    try:
        page = path.read_text(encoding="utf-8")
        found = _FRONT_MATTER.match(page)
        values = parse_yaml(found[1]) if found else None
    except ValueError as error:
        raise AdapterFileError(
            f"{path} cannot be read: {error}. Repair it; or remove it, and it is written anew."
        ) from error
    return (values, page[found.end() :]) if found and isinstance(values, dict) else ({}, page)


def _texts(value: Any) -> list[str]:
    return [str(each) for each in value] if isinstance(value, (list, tuple)) else [str(value)] if value else []
