"""The README's example, on a small model without weights, because the weights it names are on a hub."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
STAND_INS = {"vit_base_patch16_224.orig_in21k": "vit_small_patch16_224", "pretrained=True": "pretrained=False"}


def test_the_example_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    for written, stand_in in STAND_INS.items():
        assert written in example
        example = example.replace(written, stand_in)
    names = {"batches": [(torch.randn(1, 3, 224, 224), torch.tensor([i])) for i in range(16)]}
    exec(compile(example, "README.md", "exec"), names)
    assert names["allocation"].trainable_params == 400_000
    assert "400,000" in capsys.readouterr().out
    assert (Path("adapter") / "adapter_config.json").is_file()
    assert type(names["merged"]).__name__ == "VisionTransformer"


def test_every_place_the_readme_links_to_exists() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("https://")]
    assert links
    for link in links:
        name, _, section = link.partition("#")
        path = Path(__file__).parents[1] / name
        assert path.exists(), link
        headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE) if section else []
        assert not section or section in [heading.lower().replace(" ", "-") for heading in headings], link
