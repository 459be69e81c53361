from __future__ import annotations

import os
import stat
from pathlib import Path

from peft import LoraConfig, get_peft_model
from torch import nn

from sensitune.training._weights import save_weights


def test_a_saved_adapter_can_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    model = get_peft_model(nn.Sequential(nn.Linear(4, 4)), LoraConfig(target_modules=["0"]))
    before = os.umask(0o027)
    try:
        save_weights(model, tmp_path / "adapter")
    finally:
        os.umask(before)
    found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "adapter").iterdir()}
    assert found == dict.fromkeys(["adapter_config.json", "adapter_model.safetensors", "README.md"], 0o640)
