from __future__ import annotations

import pytest
import torch

from sensitune.errors import ArgumentError
from sensitune.training import resolve_device
from sensitune.training._device import resolve_dtype


def test_auto_finds_a_device_that_is_there() -> None:
    assert resolve_device("auto").type in {"cpu", "cuda", "mps"}


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"`device` must be 'auto', 'cpu', 'cuda' or 'mps'\. Got 'tpu'"):
        resolve_device("tpu")


def test_a_missing_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ArgumentError, match=r"`device` 'cuda' is not available on this machine\. Use 'auto' or 'cpu'"):
        resolve_device("cuda")


def test_the_cpu_computes_in_float32_unless_asked() -> None:
    cpu = torch.device("cpu")
    assert resolve_dtype("auto", cpu) == torch.float32
    assert resolve_dtype("bfloat16", cpu) == torch.bfloat16


def test_bfloat16_needs_hardware_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    with pytest.raises(ArgumentError, match="needs a GPU that computes in bfloat16"):
        resolve_dtype("bfloat16", torch.device("cuda"))
    assert resolve_dtype("auto", torch.device("cuda")) == torch.float32
