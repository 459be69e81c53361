"""Our scores are those of the published implementation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer

from sensitune.sensitivity import Sensitivity, estimate_sensitivity

GOLDEN = Path(__file__).parents[1] / "golden" / "reference_vit"


@pytest.fixture(scope="module", params=[None, 3])
def sensitivity(request: pytest.FixtureRequest) -> Sensitivity:
    model = VisionTransformer(**json.loads((GOLDEN / "meta.json").read_text())["arch"])
    model.load_state_dict(load_file(GOLDEN / "model.safetensors"))
    data = load_file(GOLDEN / "batches.safetensors")
    batches = list(zip(data["images"], data["labels"], strict=True))
    return estimate_sensitivity(model, batches, micro_batch_size=request.param)


def test_every_score_but_the_key_biases_agrees_to_one_part_in_ten_thousand(sensitivity: Sensitivity) -> None:
    golden = load_file(GOLDEN / "sensitivity.safetensors")
    for site in sensitivity.sites:
        parameter, _, label = site.id.rstrip("]").partition("[")
        expected = golden[parameter.replace(".qkv.", f".{label}.") if label else parameter]
        score = sensitivity.score_of(site)
        if label == "k" and site.kind == "vector":  # the true gradient is zero: softmax ignores a shift of the keys
            assert float(score.max()) < 1e-15
        else:
            # The floor is rounding noise of gradients that cancel, far below anything that could be selected.
            torch.testing.assert_close(score, expected, rtol=1e-4, atol=float(expected.max()) * 1e-9)


def test_the_highest_scores_agree_to_one_part_in_ten_thousand_without_any_floor(sensitivity: Sensitivity) -> None:
    golden = load_file(GOLDEN / "sensitivity.safetensors")
    ours = sensitivity.scores["blocks.3.mlp.fc1.weight"].flatten()
    theirs = golden["blocks.3.mlp.fc1.weight"].flatten()
    highest = theirs.topk(2000).indices
    torch.testing.assert_close(ours[highest], theirs[highest], rtol=1e-4, atol=0)
