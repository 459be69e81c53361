from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sensitune._files import apply_umask, atomic_folder, atomic_write


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
