"""Archives that hold far more than their size are refused before anything is unpacked."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from sensitune._files import is_bomb
from sensitune.backbones import BackboneSpec, load_backbone
from sensitune.data import load_data, unpack_vtab1k
from sensitune.errors import CheckpointError, DataError


def test_what_holds_sixty_four_times_its_size_is_a_bomb_if_it_is_large() -> None:
    assert not is_bomb(packed=1, unpacked=2**28)
    assert is_bomb(packed=1, unpacked=2**28 + 1)
    assert not is_bomb(packed=2**24, unpacked=2**30)
    assert is_bomb(packed=2**24, unpacked=2**30 + 1)


def _claiming(archive: Path, *, size: int) -> None:
    """Let the largest member of a zip archive claim a size, in the directory at the end."""
    content = bytearray(archive.read_bytes())
    place = content.rindex(b"PK\1\2")
    content[place + 24 : place + 28] = size.to_bytes(4, "little")
    archive.write_bytes(content)


def test_a_zip_archive_that_claims_too_much_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cifar/train800.txt", "x 0\n" * 9)
    _claiming(path, size=2**30)
    with pytest.raises(DataError, match=r"a.zip of \d+ bytes unpacks to 1,073,741,824. Nothing was unpacked"):
        unpack_vtab1k(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_archive_is_refused_that_the_disk_has_no_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("cifar/train800.txt", "x 0\n" * 9)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 35}))
    with pytest.raises(DataError, match=rf"a.zip unpacks to 36 bytes, but {tmp_path} has 35 left"):
        unpack_vtab1k(tmp_path / "a.zip", tmp_path / "out")


@pytest.mark.parametrize("damage", ["encrypted", "method"])
def test_a_zip_archive_that_cannot_be_unpacked_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cifar/train800.txt", "x 0\n")
    content = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        place = content.index(signature) + flags + (2 if damage == "method" else 0)
        content[place] = 99 if damage == "method" else 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="a.zip is truncated, damaged or not a zip archive"):
        unpack_vtab1k(path, tmp_path / "out")


def test_a_compressed_shard_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sensitune._files._LEAST_BOMB", 2**18)
    with tarfile.open(tmp_path / "s.tar", "w:gz", compresslevel=1) as archive:
        info = tarfile.TarInfo("0.png")
        info.size = 2**18 + 1
        archive.addfile(info, io.BytesIO(bytes(info.size)))
    with pytest.raises(DataError, match=r"s.tar of \S+ bytes unpacks to more than 262,145. It is refused"):
        load_data(tmp_path / "s.tar")


def test_a_shard_with_an_image_without_a_label_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for number in range(9):
            for suffix in ("png", "cls") if number != 7 else ("png",):
                content = b"1" if suffix == "cls" else b"not decoded here"
                info = tarfile.TarInfo(f"{number}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    with pytest.raises(DataError, match=r"s.tar has an image without a label. Give all of them one"):
        load_data(tmp_path / "s.tar")


@pytest.mark.parametrize("name", ["w.pth", "w.npz"])
def test_a_checkpoint_that_unpacks_to_too_much_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    torch.save({"x": torch.ones(2)}, path) if name == "w.pth" else np.savez_compressed(path, x=np.ones(2))
    _claiming(path, size=2**30)
    with pytest.raises(CheckpointError, match=rf"{name} of \S+ bytes unpacks to 1,\d+,\d+,\d+. It is refused"):
        load_backbone(BackboneSpec("test_vit", checkpoint=str(path)), num_classes=3)


def test_an_array_that_claims_too_large_a_shape_is_refused(tmp_path: Path) -> None:
    file = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**6, 10**6)}
    np.lib.format.write_array_header_1_0(file, header)
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("cls.npy", file.getvalue() + bytes(8))
    with pytest.raises(CheckpointError, match=r"w.npz is damaged: cls.npy of \d+ bytes claims the shape \(1000000, 1"):
        load_backbone(BackboneSpec("test_vit", checkpoint=str(tmp_path / "w.npz")), num_classes=3)


@pytest.mark.parametrize(
    ("tensor", "sentence"),
    [
        (torch.zeros(1).expand(10**9), "is damaged: `x` claims 4,000,000,000 bytes"),
        (torch.eye(3).to_sparse(), "`x` is sparse, quantised or empty. Save it dense"),
        (torch.empty(3, device="meta"), "`x` is sparse, quantised or empty. Save it dense"),
    ],
)
def test_a_pickle_that_promises_more_than_it_stores_is_refused(
    tmp_path: Path, tensor: torch.Tensor, sentence: str
) -> None:
    torch.save({"x": tensor}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=rf"w.pth.* {sentence}"):
        load_backbone(BackboneSpec("test_vit", checkpoint=str(tmp_path / "w.pth")), num_classes=3)
