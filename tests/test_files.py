from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from sensitune._files import apply_umask, atomic_folder, atomic_write, refuse_overwriting, remove_leftovers
from sensitune.errors import ArgumentError, OutputError


@pytest.fixture(params=[0o022, 0o027, 0o002], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def permissions(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def write_private(path: Path) -> None:
    save_file({"x": torch.zeros(2)}, path)  # whatever the umask says
    path.chmod(0o600)


def fail_after_writing(path: Path) -> None:
    path.write_text("half of it")
    raise RuntimeError


def test_a_file_has_the_permissions_of_the_umask(umask: int, tmp_path: Path) -> None:
    with atomic_write(tmp_path / "new" / "a.safetensors") as temporary:
        write_private(temporary)
    assert permissions(tmp_path / "new" / "a.safetensors") == 0o666 & ~umask
    assert permissions(tmp_path / "new") == 0o777 & ~umask


def test_a_folder_and_all_in_it_have_the_permissions_of_the_umask(umask: int, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)  # the folder above does not matter
    with atomic_folder(tmp_path / "adapter") as temporary:
        (temporary / "inner").mkdir(mode=0o700)
        write_private(temporary / "a.safetensors")
        write_private(temporary / "inner" / "b.safetensors")
    found = {str(path.relative_to(tmp_path)): permissions(path) for path in tmp_path.rglob("*")}
    files, folders = 0o666 & ~umask, 0o777 & ~umask
    assert found == {
        "adapter": folders,
        "adapter/inner": folders,
        "adapter/a.safetensors": files,
        "adapter/inner/b.safetensors": files,
    }


def test_a_private_file_gets_the_permissions_of_the_umask(umask: int, tmp_path: Path) -> None:
    write_private(tmp_path / "a.safetensors")
    apply_umask(tmp_path / "a.safetensors")
    assert {path.name: permissions(path) for path in tmp_path.iterdir()} == {"a.safetensors": 0o666 & ~umask}


def test_a_file_keeps_its_name_and_content_where_writing_fails(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(RuntimeError), atomic_write(tmp_path / "a.txt") as temporary:
        fail_after_writing(temporary)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.txt": "old"}


def test_a_folder_is_replaced_whole_or_stays_as_it_was(tmp_path: Path) -> None:
    for text in ("first", "second"):
        with atomic_folder(tmp_path / "a") as temporary:
            (temporary / text).write_text(text)
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "a") as temporary:
        fail_after_writing(temporary / "third")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["a", "a/second"]


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), "no space left"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file"), "torch"),
    ],
    ids=["system", "safetensors", "torch"],
)
@pytest.mark.parametrize("writing", [atomic_write, atomic_folder])
def test_what_could_not_be_written_is_named_whoever_wrote_it(
    error: Exception, reason: str, writing: Any, tmp_path: Path
) -> None:
    with writing(tmp_path / "a") as temporary:
        temporary.touch()
    told = f"a could not be written: {reason}.*What was there before is whole"
    with pytest.raises(OutputError, match=told), writing(tmp_path / "a"):
        raise error
    told = f"b could not be written: {reason}.*Nothing of it is left"
    with pytest.raises(OutputError, match=told), writing(tmp_path / "b"):
        raise error
    assert names(tmp_path) == {"a"}


def test_a_mistake_in_what_is_written_is_not_taken_for_the_disks(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), atomic_write(tmp_path / "a"):
        raise RuntimeError("shapes differ")


def test_the_longest_name_that_the_file_system_takes_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("ä" * 124 + ".json")  # 253 bytes
    with atomic_write(path) as temporary:
        temporary.write_text("x")
    assert names(tmp_path) == {path.name}
    (temporary.parent / temporary.name).write_text("left")
    remove_leftovers(tmp_path, of=path.name)
    assert names(tmp_path) == {path.name}
    too_long = tmp_path / ("x" * 256)
    told = r"xx could not be written: File name too long\. Nothing of it is left"
    with pytest.raises(OutputError, match=told), atomic_folder(too_long):
        pass


def test_leftovers_are_what_has_the_name_of_a_temporary_file(tmp_path: Path) -> None:
    kept = [".gitignore", ".a.txt", "a.0123abcd.txt", ".a.txt.0123abcd.csv", ".a.0123ABCD", ".a.0123abc", "a"]
    for name in (*kept, ".a.txt.0123abcd.txt", ".a.0123abcd", ".x.tar.gz.0123abcd.gz"):
        (tmp_path / name).write_text("x")
    (tmp_path / ".adapter.0123abcd" / "inner").mkdir(parents=True)
    remove_leftovers(tmp_path)
    assert names(tmp_path) == set(kept)


def test_an_output_is_none_of_its_inputs_under_any_name(tmp_path: Path) -> None:
    folder, file = tmp_path / "adapter", tmp_path / "a.png"
    folder.mkdir()
    file.write_text("picture")
    (tmp_path / "link.png").symlink_to(file)
    (tmp_path / "hard.png").hardlink_to(file)
    (tmp_path / "folder").symlink_to(folder)
    refuse_overwriting(tmp_path / "b.png", [file, folder, tmp_path / "missing"])
    for output in ("a.png", "link.png", "hard.png", "adapter/../a.png"):
        with pytest.raises(ArgumentError, match="is read too, and would be overwritten. Give it another name"):
            refuse_overwriting(tmp_path / output, [folder, file])
    for output in ("adapter/x.csv", "folder/x.csv", "folder/new/x.csv"):
        with pytest.raises(ArgumentError, match=r"lies in .*adapter, which is read. Write it elsewhere"):
            refuse_overwriting(tmp_path / output, [folder, file])
    with pytest.raises(ArgumentError, match="`output` must be a file"):
        refuse_overwriting(folder, [file])
