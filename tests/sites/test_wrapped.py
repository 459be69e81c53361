"""A model inside torch's wrappers is the model itself; what cannot be taken out is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from sensitune import SptConfig, allocate, estimate_sensitivity
from sensitune.errors import ModelError
from sensitune.sites import find_head, outline_model, unwrapped

BATCH = (torch.randn(2, 3, 16, 16), torch.tensor([0, 1]))


def vit() -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(img_size=16, patch_size=8, embed_dim=12, depth=2, num_heads=2, num_classes=5)
    nn.init.normal_(model.head.weight, std=0.02)
    return model


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "both": lambda model: torch.compile(nn.DataParallel(model), backend="eager"),
}


@pytest.mark.parametrize("wrapper", list(WRAPPERS))
def test_a_wrapped_model_has_the_outline_the_scores_and_the_adapter_of_the_plain_one(
    wrapper: str, caplog: pytest.LogCaptureFixture
) -> None:
    plain, wrapped = vit(), WRAPPERS[wrapper](vit())
    assert find_head(wrapped) == ("head",)
    assert outline_model(wrapped) == outline_model(plain)
    expected, scores = (estimate_sensitivity(model, [BATCH]) for model in (plain, wrapped))
    assert all(torch.equal(scores.scores[name], expected.scores[name]) for name in expected.scores)
    config = SptConfig.from_allocation(allocate(scores, budget=500, rank=2))
    tuned = get_peft_model(wrapped, config)
    assert "The adapter goes into the model inside" in caplog.text
    trained = {name for name, each in tuned.named_parameters() if each.requires_grad}
    assert trained == {name for name, each in get_peft_model(plain, config).named_parameters() if each.requires_grad}
    assert sum(each.numel() for each in tuned.parameters() if each.requires_grad) <= 500 + 65


def test_a_wrapper_is_looked_through_and_anything_else_left_alone() -> None:
    model = vit()
    assert unwrapped(nn.DataParallel(model)) is unwrapped(model) is model


@pytest.mark.filterwarnings("ignore:`torch.jit.trace.*` is deprecated:FutureWarning")
def test_what_cannot_be_taken_out_is_refused_by_name() -> None:
    class FullyShardedDataParallel(nn.Module):
        pass

    with pytest.raises(ModelError, match="FullyShardedDataParallel flattens the parameters"):
        outline_model(nn.Sequential(FullyShardedDataParallel(), vit()))
    with pytest.raises(ModelError, match="A TopLevelTracedModule cannot be tuned"):
        outline_model(torch.jit.trace(nn.Linear(3, 2), torch.zeros(1, 3)))
    inside = nn.Sequential(get_peft_model(vit(), SptConfig.for_whole_model(vit())))
    with pytest.raises(ModelError, match="already carries a PEFT adapter"):
        outline_model(inside)


def test_what_trains_on_several_processes_is_outlined_and_refused_an_adapter(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(vit())
        assert outline_model(wrapped) == outline_model(vit())
        with pytest.raises(ModelError, match="noted which parameters train. Give its `module` to `get_peft_model`"):
            get_peft_model(wrapped, SptConfig.for_whole_model(wrapped))
    finally:
        torch.distributed.destroy_process_group()
