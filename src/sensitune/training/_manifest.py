"""What an adapter folder carries beside PEFT's files: enough to predict with it, and to refuse another base."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PureWindowsPath
from typing import Annotated, Any, Final, Literal, TypeAlias, get_args

from peft import PeftModel

from sensitune._schema import NonNegativeInt, PositiveInt, Rule, Seed, check, read, read_json, to_plain, write_json
from sensitune.backbones import Backbone, BackboneSpec, load_backbone, of_transformers
from sensitune.data import ImageData, ImageTransform
from sensitune.errors import AdapterFileError, AllocationMismatchError, ArgumentError
from sensitune.tuner import check_complete, load_adapter

MANIFEST_NAME = "sensitune.json"
_HASH = re.compile(r"[0-9a-f]{64}")
_NAME = r"\w[\w.-]*"
# Data by a name that means the same everywhere, although there may be a slash in it.
_PUBLIC = re.compile(rf"(vtab1k|fgvc)/{_NAME}|hf:({_NAME}/)?{_NAME}(:{_NAME})?|hub: ({_NAME}/)?{_NAME}( \([^/\\]*\))?")
_UNNAMED = "unnamed data"

Hash: TypeAlias = Annotated[
    str, Rule("a SHA-256 hash, 64 hexadecimal digits", lambda text: bool(_HASH.fullmatch(text)))
]
FileName: TypeAlias = Literal["adapter_config.json", "adapter_model.safetensors"]
_CHECKSUM: Final = "sha256"


@dataclass(frozen=True)
class AdapterOrigin:
    """The run that an adapter comes from.

    Attributes:
        method: The method's name.
        seed: Seed of the run. A base without pretrained weights is drawn from it again.
        trainable_params: Scalars that trained, the head not counted.
        head_params: Scalars of the head.
        backbone_params: Scalars of the backbone, the head not counted.
        data: `sensitune.data.ImageData.info`, with the source by name.

    Raises:
        ArgumentError: If a value has the wrong type or is out of range.
    """

    method: str
    seed: Seed
    trainable_params: NonNegativeInt
    head_params: NonNegativeInt
    backbone_params: PositiveInt
    data: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self)

    @classmethod
    def of(
        cls,
        data: ImageData,
        *,
        method: str,
        seed: int,
        trainable_params: int,
        head_params: int,
        backbone_params: int,
    ) -> AdapterOrigin:
        """The origin of an adapter that was trained on some data.

        Args:
            data: The data.
            method: As in the class.
            seed: As in the class.
            trainable_params: As in the class.
            head_params: As in the class.
            backbone_params: As in the class.

        Returns:
            The origin; of the data's source, or of each of several, the name alone where it is a path.
        """
        info = dict(data.info)
        if "source" in info:
            info["source"] = _public_source(info["source"])
        return cls(method, seed, trainable_params, head_params, backbone_params, info)


@dataclass(frozen=True)
class AdapterManifest:
    """How to build the model an adapter belongs to, and what its outputs mean: the content of ``sensitune.json``.

    An adapter is made to be shared, so it says nothing about its maker's machine: the checkpoint goes by its file name
    and the weights' hash, the data by its name, and paths of a machine are refused.

    Attributes:
        backbone: What the base model is built from.
        weights_hash: `sensitune.backbones.weights_hash` of the base model.
        class_names: Name of every class id.
        transform: How images become tensors; without its augmentation when it is saved.
        origin: The run it comes from.
        files: SHA-256 of PEFT's files beside it, as they were when it was saved; `save` fills it in. A manifest
            without it, or another that has been loaded, is equal to one with it.

    Raises:
        ArgumentError: If a value has the wrong type, the checkpoint is not a mere file name, or the origin holds a
            path of a machine.
    """

    backbone: BackboneSpec
    weights_hash: Hash
    class_names: tuple[str, ...]
    transform: ImageTransform
    origin: AdapterOrigin
    files: Mapping[FileName, Hash] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        check(self)
        if _is_local(self.backbone.name):
            raise ArgumentError(
                f"`backbone.name` of an adapter's manifest must not be a path of this machine: {self.backbone.name!r}. "
                "Give the folder's own name."
            )
        checkpoint = self.backbone.checkpoint
        if checkpoint is not None and Path(checkpoint).name != checkpoint:
            raise ArgumentError(
                f"`backbone.checkpoint` of an adapter's manifest must be a file name. Got {checkpoint!r}. Leave its "
                "folder out."
            )
        if path := next(filter(_is_local, _texts(self.origin.data)), None):
            raise ArgumentError(
                f"`origin.data` of an adapter's manifest must not hold a path of this machine: {path!r}."
            )

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``sensitune.json`` into an adapter folder, with checksums of the files that are there and its own.

        Args:
            folder: The adapter folder.
        """
        named: tuple[FileName, ...] = get_args(FileName)
        files = {name: _sha256(Path(folder) / name) for name in named if (Path(folder) / name).is_file()}
        saved = replace(self, transform=self.transform.for_evaluation(), files=files)
        values = to_plain(saved)
        write_json(Path(folder) / MANIFEST_NAME, values | {_CHECKSUM: _checksum(values)})

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> AdapterManifest:
        """Read what `save` wrote.

        Args:
            folder: The adapter folder.

        Returns:
            The manifest.

        Raises:
            AdapterFileError: If the folder has no manifest, or a damaged one.
        """
        path = Path(folder) / MANIFEST_NAME
        if not path.is_file():
            raise AdapterFileError(
                f"{os.fspath(folder)} is not an adapter folder of a Sensitune run: it has no {MANIFEST_NAME}. "
                "Give the `adapter` folder of a run."
            )
        values = read_json(path, error=AdapterFileError)
        written = values.pop(_CHECKSUM, None) if isinstance(values, dict) else None
        manifest = read(cls, values, source=path, error=AdapterFileError)
        if written not in (None, _checksum(values)):
            raise AdapterFileError(
                f"{path} is damaged or was changed: it does not go with its `{_CHECKSUM}`. Restore it; or, if the "
                "change is meant, remove that line."
            )
        return manifest

    def check_files(self, folder: str | os.PathLike[str]) -> None:
        """Make sure that PEFT's files are those that the manifest was saved with.

        Args:
            folder: The adapter folder.

        Raises:
            AdapterFileError: If one is missing or has changed.
        """
        check_complete(folder)
        for name, expected in self.files.items():
            path = Path(folder) / name
            if (found := _sha256(path)) != expected:
                raise AdapterFileError(
                    f"{path} is damaged or was changed: its SHA-256 is {found[:12]}, not {expected[:12]} as "
                    f"{MANIFEST_NAME} beside it says. Restore it; or, if that is meant, write {MANIFEST_NAME} anew: "
                    "`AdapterManifest.load(folder).save(folder)`."
                )


def load_tuned(
    folder: str | os.PathLike[str],
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    backbone: Backbone | None = None,
) -> tuple[PeftModel, AdapterManifest]:
    """Build the tuned model again from its adapter folder alone, plus its base weights.

    Args:
        folder: An adapter folder that `train` wrote with a manifest.
        checkpoint: The base's weight file, if the manifest names one; None takes the weights that belong to the base's
            name.
        backbone: The base where it is in memory already, untuned; its model becomes the tuned one.

    Returns:
        The PEFT model in eval mode on the CPU, and its manifest.

    Raises:
        AdapterFileError: If the folder is not an adapter folder, lacks a file, or holds one that is damaged or has
            changed.
        AllocationMismatchError: If the base weights are not those the adapter was tuned on.
        ArgumentError: If the manifest names a weight file and `checkpoint` is missing.
    """
    manifest = AdapterManifest.load(folder)
    manifest.check_files(folder)
    if backbone is None:
        backbone = _load_base(manifest, folder, checkpoint)
    if backbone.weights_hash != manifest.weights_hash:
        raise AllocationMismatchError(
            f"{os.fspath(folder)} was tuned on {manifest.backbone.name} with weights {manifest.weights_hash[:12]}. "
            f"Got weights {backbone.weights_hash[:12]}. Give the `checkpoint` it was tuned on."
        )
    return load_adapter(backbone.model, folder), manifest


def _load_base(
    manifest: AdapterManifest, folder: str | os.PathLike[str], checkpoint: str | os.PathLike[str] | None
) -> Backbone:
    spec = manifest.backbone if checkpoint is None else replace(manifest.backbone, checkpoint=os.fspath(checkpoint))
    if checkpoint is None and spec.checkpoint is not None:
        kind = "folder" if of_transformers(spec) else "weight file"
        raise ArgumentError(f"{os.fspath(folder)} was tuned on the {kind} {spec.checkpoint}. Give it as `checkpoint`.")
    return load_backbone(spec, num_classes=len(manifest.class_names), seed=manifest.origin.seed)


def _checksum(values: Any) -> str:
    """Of plain values, whatever their order and layout."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _public_source(source: Any) -> Any:
    """The source of some data, or each of several, without where it lies."""
    if isinstance(source, (list, tuple)):
        return [_public_name(str(each)) for each in source]
    return _public_name(str(source))


def _public_name(source: str) -> str:
    """A name that is known everywhere as it is, of a path the last part."""
    if _PUBLIC.fullmatch(source):
        return source
    *folders, name = posixpath.normpath(source.replace("\\", "/")).split("/")
    if name in {"", ".", ".."} or name.endswith(":") or (name.startswith("~") and not folders):
        return _UNNAMED
    return name.lstrip("~") or _UNNAMED


def _texts(value: Any) -> Iterator[str]:
    """All texts in plain values, keys too."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _texts(key)
            yield from _texts(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, str):
        yield value


def _is_local(text: str) -> bool:
    """Whether a text is a path that starts at the root, at a home or above the current folder, or a file's URL."""
    first, *others = re.split(r"[/\\]", text)
    return bool(PureWindowsPath(text).root or first in {"~", "..", "file:"} or (first.startswith("~") and others))
