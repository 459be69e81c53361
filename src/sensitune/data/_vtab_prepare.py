"""VTAB-1k onto the disk: from its 16 sources as PNG, or out of an archive of the usual conversion."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from sensitune._files import atomic_write, is_bomb
from sensitune._installed import install_line
from sensitune._lock import one_writer
from sensitune._schema import show_reason, write_json
from sensitune.data._vtab import VTAB_SIZES, VTAB_TASKS, VtabTask, vtab_task
from sensitune.data._vtab_sources import VTAB_SOURCES, Row, VtabSource
from sensitune.errors import DataError, MissingPackageError

HUB_REPOSITORY = "XiN0919/VTAB-1k"
HUB_FILE = "vtab-1k.zip"
CHECKSUMS = "checksums.sha256"
_DONE = "prepared.json"
_ENCODER = "Its images come as arrays, which only TensorFlow encodes: pip install tensorflow."
Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with a task's or a split's name, how many images are done, and how many there are."""


def prepare_vtab1k(
    task: str,
    output: str | os.PathLike[str],
    *,
    tfds_folder: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Make one task by its official construction, from TensorFlow Datasets, without a loss of pixels.

    The images are written as PNG, the lists in the usual layout, and ``checksums.sha256`` (for ``sha256sum -c``)
    covers all of them. A half-finished preparation goes on where it stopped; a finished one is left alone.

    Args:
        task: Name of the task.
        output: Folder of the task folders.
        tfds_folder: Where TensorFlow Datasets keeps its data; None is its own default.
        progress: Told of every image.

    Returns:
        The task's folder.

    Raises:
        ArgumentError: If there is no such task.
        MissingPackageError: If ``tensorflow-datasets`` is not installed.
        DataError: If a manual download is missing, the source cannot be had,
            or it is not what the benchmark was made from.
    """
    spec, source = vtab_task(task), VTAB_SOURCES[task]
    folder = Path(output).expanduser() / task
    if (folder / _DONE).is_file():
        return folder
    with one_writer(folder):
        return _prepare(spec, source, folder, tfds_folder, progress)


def _prepare(
    spec: VtabTask,
    source: VtabSource,
    folder: Path,
    tfds_folder: str | os.PathLike[str] | None,
    progress: Progress | None,
) -> Path:
    task = spec.name
    builder = _prepared_builder(task, source, tfds_folder)
    splits = _open_splits(builder, source)
    chosen = {
        name: part.rows(len(splits[part.split]))[: VTAB_SIZES.get(name)]
        for name, part in zip(("train800", "val200", "test"), source.parts, strict=True)
    }
    _check_sizes(spec, chosen)
    lists = {
        name: list(_write_images(spec, source, splits[part.split], chosen[name], folder, name, progress))
        for name, part in zip(chosen, source.parts, strict=True)
    }
    lists["train800val200"] = lists["train800"] + lists["val200"]
    for name, lines in lists.items():
        _write_text(folder / f"{name}.txt", "".join(f"{line}\n" for line in lines))
    write_checksums(folder)
    made_from = {"tfds": f"{source.builder}:{builder.version}", "sensitune": version("sensitune")}
    sizes = {name: len(lines) for name, lines in lists.items()}
    write_json(folder / _DONE, {"task": task, "made_from": made_from, "sizes": sizes})
    return folder


def unpack_vtab1k(
    archive: str | os.PathLike[str], output: str | os.PathLike[str], *, progress: Progress | None = None
) -> list[str]:
    """Unpack a zip archive of the usual layout, with or without a folder around the task folders.

    Files that are there already, whole, are not written again.

    Args:
        archive: The archive.
        output: Folder of the task folders.
        progress: Told of every file.

    Returns:
        The tasks that the archive holds.

    Raises:
        DataError: If it is no zip archive, is damaged or holds no task; or if a path in it is absolute, leads out of
            the folder or is a link: nothing is written then.
    """
    target = Path(output).expanduser()
    try:
        with zipfile.ZipFile(archive) as file:
            members = {each: place for each in file.infolist() if (place := _place(each, archive, target))}
            found = {place.relative_to(target).parts[0] for place in members.values()}
            tasks = [name for name in VTAB_TASKS if name in found]
            _check_room(archive, target, sum(member.file_size for member in members))
            if not tasks:
                raise DataError(f"The archive {archive} holds no task folder of VTAB-1k ({', '.join(VTAB_TASKS)}).")
            with one_writer(target, within=list(VTAB_TASKS)):
                for done, (member, place) in enumerate(members.items(), start=1):
                    _extract(file, member, place)
                    if progress:
                        progress("files", done, len(members))
    except OSError as error:
        if not Path(archive).exists():
            raise DataError(f"The archive {archive} does not exist.") from error
        raise DataError(f"The archive {archive} cannot be unpacked to {target} ({show_reason(error)}).") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(
            f"The archive {archive} is truncated, damaged or not a zip archive ({show_reason(error)})."
        ) from error
    for name in tasks:
        write_checksums(target / name)
    return tasks


def fetch_vtab1k(*, repository: str = HUB_REPOSITORY, file: str = HUB_FILE) -> Path:
    """Fetch an archive of the usual conversion from the Hugging Face hub, or from its cache.

    Its 32×32 images were saved as JPEG of default quality; `prepare_vtab1k` makes the data without that loss.

    Args:
        repository: Name of the data set repository.
        file: Name of the archive in it.

    Returns:
        Where the archive lies.

    Raises:
        DataError: If it cannot be fetched.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, file, repo_type="dataset"))
    except Exception as error:  # each transport of the hub has its own errors
        raise DataError(
            f"{file} could not be fetched from {repository} on the hub ({type(error).__name__}). "
            f"Download it elsewhere and use `--from zip --archive {file}`."
        ) from error


def write_checksums(folder: Path) -> None:
    """Write the SHA-256 of every list and image of a task, as ``sha256sum`` writes and checks them.

    Args:
        folder: The task's folder.
    """
    visible = (path for path in folder.rglob("*") if not path.name.startswith("."))
    files = sorted(path for path in visible if path.is_file() and path.suffix in {".txt", ".png", ".jpg"})
    lines = [f"{_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    _write_text(folder / CHECKSUMS, "".join(lines))


def _prepared_builder(task: str, source: VtabSource, folder: str | os.PathLike[str] | None) -> Any:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise MissingPackageError(
            f"VTAB-1k is made from its sources by tensorflow-datasets. Install the extra: {install_line('vtab')}"
        ) from error
    home = None if folder is None else os.fspath(Path(folder).expanduser())
    try:
        # The format that can be read at any place, and without TensorFlow.
        builder = tfds.builder(source.builder, data_dir=home, file_format="array_record")
        _check_manual(task, source, builder)
        builder.download_and_prepare()
    except DataError:
        raise
    except Exception as error:  # downloads, archives and their readers fail in any way
        hint = _ENCODER if "No module named 'tensorflow'" in str(error) else source.hint
        raise DataError(
            f"{source.builder} could not be downloaded and prepared ({type(error).__name__}: {error}). {hint}"
        ) from error
    return builder


def _open_splits(builder: Any, source: VtabSource) -> dict[str, Sequence[Row]]:
    try:
        return {part.split: builder.as_data_source(split=part.split) for part in source.parts}
    except Exception as error:  # a missing split, or data that was prepared in another format
        raise DataError(
            f"The prepared {source.builder} cannot be read ({type(error).__name__}: {error}). "
            f"Remove it, and it is prepared anew."
        ) from error


def _check_manual(task: str, source: VtabSource, builder: Any) -> None:
    levels = source.builder.count("/") + 1  # above the version: the data set, and its configuration
    manual = Path(builder.data_dir).parents[levels] / "downloads" / "manual"
    if source.manual and not builder.is_prepared() and not (manual / source.marker).exists():
        raise DataError(f"{task} needs files that only a person can download, in {manual}. {source.manual}")


def _write_images(
    task: VtabTask,
    source: VtabSource,
    rows: Sequence[Row],
    chosen: Sequence[int],
    folder: Path,
    split: str,
    progress: Progress | None,
) -> Iterator[str]:
    """Write what is not there yet, and yield the lines of the list."""
    for number, position in enumerate(chosen):
        row = rows[position]
        label = source.label(row)
        if not 0 <= label < task.num_classes:
            raise DataError(
                f"Row {position} of {source.builder} has the label {label} for {task.name}. "
                f"Class ids go from 0 to {task.num_classes - 1}: is it the data set that the benchmark was made from?"
            )
        name = f"images/{split}/{number:06d}.png"
        if not (folder / name).exists():  # files get their names only when they are whole
            with atomic_write(folder / name) as temporary:
                to_image(row["image"], source.pixel_scale).save(temporary, format="PNG")
        if progress:
            progress(f"{task.name} {split}", number + 1, len(chosen))
        yield f"{name} {label}"


def to_image(pixels: Any, scale: int) -> Image.Image:
    """``[height, width, 1 or 3]`` uint8 as an image, without a loss."""
    array = np.asarray(pixels) * np.uint8(scale)
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def _check_sizes(task: VtabTask, chosen: Mapping[str, Sequence[int]]) -> None:
    """Before anything is written."""
    for name, rows in chosen.items():
        sizes = task.test_sizes if name == "test" else (VTAB_SIZES[name],)
        if len(rows) not in sizes:
            raise DataError(
                f"The source of {task.name} gives {len(rows):,} images for {name}, but the benchmark has "
                f"{' or '.join(f'{each:,}' for each in sizes)}. Its version has changed."
            )


def _place(member: zipfile.ZipInfo, archive: str | os.PathLike[str], target: Path) -> Path | None:
    """Where a file of the archive goes; None for folders and for what belongs to no task."""
    parts = member.filename.replace("\\", "/").split("/")
    link = stat.S_ISLNK(member.external_attr >> 16)
    if not parts[0] or parts[0][1:2] == ":" or ".." in parts or link:
        raise DataError(
            f"The archive {archive} holds {member.filename!r}, which leads out of its folder. Nothing was unpacked."
        )
    start = next((index for index, part in enumerate(parts) if part in VTAB_TASKS), None)
    if start is None or member.is_dir() or parts[0] == "__MACOSX":
        return None
    return target.joinpath(*parts[start:])


def _check_room(archive: str | os.PathLike[str], target: Path, unpacked: int) -> None:
    """Before anything is written."""
    packed = os.path.getsize(archive)
    if is_bomb(packed, unpacked):
        raise DataError(f"The archive {archive} of {packed:,} bytes unpacks to {unpacked:,}. Nothing was unpacked.")
    place = next(each for each in (target, *target.absolute().parents) if each.is_dir())
    if unpacked > (free := shutil.disk_usage(place).free):
        raise DataError(f"The archive {archive} unpacks to {unpacked:,} bytes, but {place} has {free:,} left.")


def _extract(file: zipfile.ZipFile, member: zipfile.ZipInfo, place: Path) -> None:
    if place.is_file() and place.stat().st_size == member.file_size:
        return
    with file.open(member) as content, atomic_write(place) as temporary, temporary.open("wb") as out:
        shutil.copyfileobj(content, out)


def _write_text(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
