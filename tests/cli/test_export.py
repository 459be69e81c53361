from __future__ import annotations

import json
from pathlib import Path

import pytest

from sensitune_command import main


def test_export_refuses_by_name_or_says_what_it_left_out_and_what_that_costs(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", str(finished / "adapter"), "--format", "lora", "--output", str(tmp_path / "lora")]
    assert main(command) == 2
    assert "`cls_token`" in capsys.readouterr().err
    assert not (tmp_path / "lora").exists()
    assert main([*command, "--allow-dropping", "--uniform-rank"]) == 0
    shown = capsys.readouterr().out
    assert "left out: cls_token (not the weight of a linear layer)" in shown
    assert "% before, " in shown
    assert "trained whole, in modules_to_save: head" in shown
    assert f"plain LoRA: {tmp_path / 'lora'}" in shown
    assert json.loads((tmp_path / "lora" / "adapter_config.json").read_text())["peft_type"] == "LORA"
