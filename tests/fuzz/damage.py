"""What can happen to a file: seeded changes of bytes, of JSON and YAML documents, and of tensor files."""

from __future__ import annotations

import copy
import io
import json
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load, save
from tensor_files import seal

from sensitune._tensor_file import checksum

Change = Callable[[random.Random, bytes], bytes]

# Written into a document as text, and replaced by what no writer of JSON would write.
_DEEP, _LONG, _NAN, _INFINITE, _HALF = "@deep@", "@long@", "@nan@", "@infinite@", "@half@"
_RAW = {
    f'"{_DEEP}"': "[" * 50_000 + "]" * 50_000,
    f'"{_LONG}"': "9" * 5_000,
    f'"{_NAN}"': "NaN",
    f'"{_INFINITE}"': "-Infinity",
    f'"{_HALF}"': '"\\ud800"',
}
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 3, 1.5, -0.5, 1e308, 1e-320, 10**9, 2**31, 2**63 - 1, 10**30),
    *("", "x", "7", "\x1b[31mred", "[/]", "a\x00b", "é" * 300, "x" * 10_000, "/etc/passwd", "../../up"),
    *([], [1], [[]], [None], {}, {"x": 1}, {"": {}}, {"x" * 500: 1}),
    *(_DEEP, _LONG, _NAN, _INFINITE, _HALF),
)


# -- bytes ------------------------------------------------------------------------------------------------------------


def truncate(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.choice([0, 1, 7, 8, 9, 64, rng.randrange(len(data) + 1), len(data) - 1])]


def flip_a_bit(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def flip_an_early_bit(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    changed[rng.randrange(min(len(data), 400))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def put_in(rng: random.Random, data: bytes) -> bytes:
    what = rng.choice([b"\0", b"\xff\xfe", b"\xc3", b"\r\n", b"\x1b[2J", b"\t", b'"', b"{", b"\x80\x81"])
    place = rng.randrange(len(data) + 1)
    return data[:place] + what + data[place:]


def blank_out(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data))
    length = min(rng.choice([1, 16, 512]), len(data) - start)
    return data[:start] + b"\0" * length + data[start + length :]


def swap_halves(rng: random.Random, data: bytes) -> bytes:
    place = rng.randrange(len(data))
    return data[place:] + data[:place]


def twice(rng: random.Random, data: bytes) -> bytes:
    return data + data


def something_else(rng: random.Random, data: bytes) -> bytes:
    page = b"<!DOCTYPE html><html>Sign in</html>"
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    return rng.choice([page, pointer, b"{}", b"[]", b"null", b"\0" * 4096, rng.randbytes(300), b"\x80\x04N."])


BYTES: tuple[Change, ...] = (
    *(truncate, truncate, flip_a_bit, flip_a_bit, flip_an_early_bit, put_in, blank_out, swap_halves),
    *(twice, something_else),
)


# -- documents --------------------------------------------------------------------------------------------------------


def change_document(rng: random.Random, document: Any) -> Any:
    """A copy with one value, key or entry changed."""
    changed = {"": copy.deepcopy(document)}
    parent, key = _somewhere(rng, changed)
    kinds = ["value"] * 6 + (["drop", "add", "rename"] if isinstance(parent, dict) and parent is not changed else [])
    match rng.choice(kinds):
        case "value":
            parent[key] = rng.choice(VALUES) if rng.random() < 0.7 else _near(rng, parent[key])
        case "drop":
            del parent[key]
        case "add":
            parent[rng.choice(["unknown", "", "x" * 300, "\x1b[31m", "__class__"])] = rng.choice(VALUES)
        case "rename":
            parent[f"{key}_"] = parent.pop(key)
    return changed[""]


def _somewhere(rng: random.Random, value: Any) -> tuple[Any, Any]:
    parent, key = value, ""
    while isinstance(parent[key], (dict, list)) and parent[key] and rng.random() < 0.85:
        parent = parent[key]
        key = rng.choice(list(parent)) if isinstance(parent, dict) else rng.randrange(len(parent))
    return parent, key


def _near(rng: random.Random, value: Any) -> Any:
    """A value of the same type, as a slip would have it."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return rng.choice([value + 1, -value, value * 10, value * 10**6])
    if isinstance(value, str):
        return rng.choice([value[:-1], value.upper(), value + " ", f"{value}.0"])
    if isinstance(value, list):
        return rng.choice([value[:-1], value + value, value[::-1], [value]])
    return list(value.items()) if isinstance(value, dict) else [value]


def write_document(document: Any) -> str:
    text = json.dumps(document)
    for marker, raw in _RAW.items():
        text = text.replace(marker, raw)
    return text


def change_json(rng: random.Random, data: bytes) -> bytes:
    return write_document(change_document(rng, json.loads(data))).encode()


def repeat_a_key(rng: random.Random, data: bytes) -> bytes:
    text = data.decode()
    places = [place for place in range(len(text)) if text[place] == "{"]
    place = rng.choice(places) + 1
    return (text[:place] + '"again": 1, "again": 2, ' + text[place:]).encode()


def change_a_line(rng: random.Random, data: bytes) -> bytes:
    lines = data.splitlines()
    chosen = rng.randrange(len(lines))
    lines[chosen] = change_json(rng, lines[chosen])
    return b"\n".join(lines) + b"\n"


def drop_a_line(rng: random.Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    del lines[rng.randrange(len(lines))]
    return b"".join(lines)


def change_yaml(rng: random.Random, data: bytes) -> bytes:
    # JSON is YAML; what is left of the markers is text.
    return write_document(change_document(rng, yaml.safe_load(data))).encode()


def misuse_yaml(rng: random.Random, data: bytes) -> bytes:
    bomb = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    bomb += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    first = data.split(b":")[0].split(b"\n")[-1].decode()
    lines = rng.choice(
        [
            [*bomb, f"{first}: *a9"],
            ["x: &x {y: 1}", "z: {<<: *x}"],
            ["x: !!python/object/apply:os.system ['echo no']"],
            ["x: &x [*x]"],
            ["x: 2026-01-01"],
            ["x: !!binary aGk="],
            ["\tx: 1"],
            ["? [1, 2]\n: 3"],
            ["x: " + "[" * 2_000 + "]" * 2_000],
            ["x: " + "1" * 5_000],
            ["x: 1", "x: 2"],
            ["--- a", "--- b"],
            ["%YAML 3.0", "---", "x: 1"],
        ]
    )
    return "\n".join(lines).encode() + (b"\n" + data if rng.random() < 0.5 else b"")


JSON: tuple[Change, ...] = (*(change_json,) * 10, repeat_a_key, *BYTES)
LINES: tuple[Change, ...] = (*(change_a_line,) * 8, drop_a_line, *BYTES)
YAML: tuple[Change, ...] = (*(change_yaml,) * 8, *(misuse_yaml,) * 4, *BYTES)


# -- tensor files -----------------------------------------------------------------------------------------------------


def change_tensors(rng: random.Random, data: bytes) -> bytes:
    tensors, metadata = load(data), _header(data).get("__metadata__")
    return save(change_one(rng, tensors), metadata)


def change_one(rng: random.Random, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """One tensor gone, added, renamed, or of another type, shape or content."""
    changed = {name: tensor.clone() for name, tensor in tensors.items()}
    name = rng.choice(sorted(changed))
    tensor = changed[name]
    flat = tensor.reshape(-1)
    place = rng.randrange(max(flat.numel(), 1))
    match rng.randrange(12):
        case 0:
            del changed[name]
        case 1:
            changed[rng.choice(["", "other.weight", "x" * 500, "\x1b[31m"])] = torch.zeros(2)
        case 2:
            changed[f"{name}_"] = changed.pop(name)
        case 3:
            changed[name] = tensor.to(rng.choice([torch.int32, torch.bool, torch.uint8, torch.int64]))
        case 4:
            changed[name] = tensor.to(rng.choice([torch.float64, torch.float16, torch.complex64]))
        case 5:
            changed[name] = flat.unsqueeze(0).clone()
        case 6:
            changed[name] = flat[:-1].clone()
        case 7 if tensor.is_floating_point():
            flat[place] = rng.choice([float("nan"), float("inf"), -float("inf"), -1.0, 1e30])
        case 7:
            flat[place] = rng.choice([-1, 0, 10**6, 2**31 - 1])
        case 8:
            changed[name] = torch.full_like(tensor, 1)
        case 9:
            changed[name] = flat.flip(0).reshape(tensor.shape).clone()
        case 10:
            changed[name] = torch.empty(0)
        case 11:
            other = rng.choice(sorted(changed))
            changed[name], changed[other] = changed[other].clone(), tensor
    return changed


def change_header(rng: random.Random, data: bytes) -> bytes:
    text = write_document(change_document(rng, _header(data))).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + _length(data) :]


def claim_much(rng: random.Random, data: bytes) -> bytes:
    header = _header(data)
    names = [name for name in header if name != "__metadata__"]
    if not names or rng.random() < 0.3:
        return struct.pack("<Q", rng.choice([2**62, 10**9, len(data)])) + data[8:]
    header[rng.choice(names)]["shape"] = [10**5, 10**5]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + _length(data) :]


def change_metadata(rng: random.Random, data: bytes) -> bytes:
    """Change the JSON document in the header."""
    header = _header(data)
    metadata = header.get("__metadata__", {})
    key = max(metadata, key=lambda each: len(metadata[each]), default=None)
    if key is None or not metadata[key].startswith("{"):
        return change_header(rng, data)
    metadata[key] = write_document(change_document(rng, json.loads(metadata[key])))
    return save(load(data), metadata)


def change_and_seal(rng: random.Random, data: bytes) -> bytes:
    """Change a tensor, or the document, of a file of Sensitune's own, and make its checksums right again."""
    tensors = load(data)
    document = json.loads(_header(data)["__metadata__"]["sensitune"])
    if rng.random() < 0.5:
        tensors = change_one(rng, tensors)
        document["tensors"] = {name: checksum(tensor) for name, tensor in tensors.items()}
    else:
        document = change_document(rng, document)
    return save(tensors, seal(write_document(document)))


def _length(data: bytes) -> int:
    return int(struct.unpack("<Q", data[:8])[0])


def _header(data: bytes) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(data[8 : 8 + _length(data)])
    return header


SEALED: tuple[Change, ...] = (change_and_seal,)
TENSORS: tuple[Change, ...] = (*(change_tensors,) * 8, *(change_metadata,) * 4, change_header, claim_much, *BYTES)


# -- what other libraries write ---------------------------------------------------------------------------------------


class _Harm:
    """Would leave a trace if it were unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("unpickled"),)


def change_pickle(rng: random.Random, data: bytes) -> bytes:
    tensors = torch.load(io.BytesIO(data), weights_only=True)
    name = rng.choice(sorted(tensors))
    tensor = tensors[name]
    content: Any = rng.choice(
        [
            lambda: change_one(rng, tensors),
            lambda: change_one(rng, tensors),
            lambda: {**tensors, name: tensor.to_sparse()},
            lambda: {**tensors, name: torch.zeros(1).expand(10**9)},
            lambda: {**tensors, name: torch.empty(tensor.shape, device="meta")},
            lambda: {**tensors, name: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8)},
            lambda: {**tensors, name: tensor.tolist()},
            lambda: {**tensors, 3: tensor},
            lambda: list(tensors.values()),
            lambda: {"model": {"model": tensors}},
            lambda: {"state_dict": 3},
            dict,
            lambda: 7,
            lambda: {**tensors, name: _Harm()},
        ]
    )()
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def pickle_harm(rng: random.Random, data: bytes) -> bytes:
    return pickle.dumps({"model": _Harm()}, protocol=rng.choice([0, 2, 4]))


def inflate_zip(rng: random.Random, data: bytes) -> bytes:
    """The largest of its files compressed, and followed by 400 MiB of zeros."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w") as new:
        largest = max(old.infolist(), key=lambda each: each.file_size)
        for member in old.infolist():
            info = zipfile.ZipInfo(member.filename)
            info.compress_type = zipfile.ZIP_DEFLATED if member is largest else zipfile.ZIP_STORED
            with new.open(info, "w") as out:
                out.write(old.read(member))
                for _ in range(400 if member is largest else 0):
                    out.write(bytes(2**20))
    return file.getvalue()


def rewrite_zip(rng: random.Random, data: bytes) -> bytes:
    """A member gone, renamed, added, said to be encrypted, or compressed by an unknown method."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w") as new:
        chosen = rng.randrange(len(old.infolist()))
        what = rng.choice(["drop", "rename", "add", "link", "cut"])
        for number, member in enumerate(old.infolist()):
            content = old.read(member)
            if number == chosen and what == "drop":
                continue
            name = member.filename
            if number == chosen and what == "rename":
                name = rng.choice(["../up", "/etc/x", "C:\\x", "x" * 300, f"{name}/x", "a\x1bb"])
            info = zipfile.ZipInfo(name)
            if number == chosen and what == "link":
                info.external_attr = 0o120777 << 16
            new.writestr(info, content[: len(content) // 2] if number == chosen and what == "cut" else content)
        if what == "add":
            new.writestr(rng.choice(["cifar/x.png", "readme", "../x", "cifar/train800.txt/x"]), b"x" * 100)
    return file.getvalue()


def change_zip_record(rng: random.Random, data: bytes) -> bytes:
    """A field of a member's record: flags, method, sizes."""
    changed = bytearray(data)
    signature, fields = rng.choice([(b"PK\1\2", (8, 10, 20, 24, 28, 42)), (b"PK\3\4", (6, 8, 18, 22, 26))])
    places = [place for place in range(len(data) - 50) if data[place : place + 4] == signature]
    if places:
        place = rng.choice(places) + rng.choice(fields)
        changed[place : place + 2] = struct.pack("<H", rng.choice([1, 12, 14, 99, 0x0800, 0xFFFF]))
    return bytes(changed)


def change_npz(rng: random.Random, data: bytes) -> bytes:
    with np.load(io.BytesIO(data)) as archive:
        arrays: dict[str, Any] = {name: archive[name] for name in archive.files}
    name = rng.choice(sorted(arrays))
    array = arrays[name]
    match rng.randrange(8):
        case 0:
            del arrays[name]
        case 1:
            arrays[name] = np.array(["text"] * 3)
        case 2:
            arrays[name] = np.array([{"x": 1}], dtype=object)
        case 3:
            arrays[name] = array.astype(rng.choice(["int32", "bool", "complex64", "float64", "float16"]))
        case 4:
            arrays[name] = array[..., :-1] if array.ndim else array
        case 5:
            arrays[name] = np.full_like(array, rng.choice([np.nan, np.inf]))
        case 6:
            arrays[f"{name}_"] = arrays.pop(name)
        case 7:
            arrays["x" * 200] = array
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


PICKLE: tuple[Change, ...] = (*(change_pickle,) * 10, pickle_harm, rewrite_zip, change_zip_record, *BYTES)
NPZ: tuple[Change, ...] = (*(change_npz,) * 6, rewrite_zip, *(change_zip_record,) * 2, *BYTES)
ZIP: tuple[Change, ...] = (*(rewrite_zip,) * 5, *(change_zip_record,) * 4, *BYTES)


# -- lists ------------------------------------------------------------------------------------------------------------


def change_a_cell(rng: random.Random, data: bytes) -> bytes:
    lines = data.decode().splitlines()
    number = rng.randrange(len(lines))
    cells = lines[number].split(",")
    cells[rng.randrange(len(cells))] = rng.choice(
        [
            "",
            "../x.png",
            "/etc/passwd",
            "nowhere.png",
            '"',
            "x" * 200_000,
            "\x1b[31m",
            "=1+1",
            "a\0b",
            "9" * 5_000,
            "½",
            "²",
        ]
    )
    lines[number] = ",".join(cells)
    return "\n".join(lines).encode()


CSV: tuple[Change, ...] = (*(change_a_cell,) * 5, drop_a_line, *BYTES)


# -- model cards ------------------------------------------------------------------------------------------------------


def misuse_front_matter(rng: random.Random, data: bytes) -> bytes:
    return b"---\n" + misuse_yaml(rng, b"tags: [x]\n") + b"\n---\n" + data


CARD: tuple[Change, ...] = (*(misuse_front_matter,) * 6, *BYTES)
