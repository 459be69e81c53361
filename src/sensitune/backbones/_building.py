"""A spec -> a timm model of the right size, with a seeded new head, before any checkpoint is read."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import timm
import torch
from timm.layers.drop import DropPath
from torch import nn

from sensitune.backbones._published import PUBLISHED_BACKBONES
from sensitune.errors import CheckpointError, ModelError
from sensitune.sites import find_head


def build_model(
    name: str, *, num_classes: int, image_size: int | None, drop_path: float, seed: int, from_hub: bool
) -> nn.Module:
    """Create a timm model whose random weights depend on `seed` alone.

    Args:
        name: A timm model name, with or without tag.
        num_classes: Outputs of the head.
        image_size: Side of the square input in pixels; None is the model's own.
        drop_path: Largest drop-path rate of the blocks, grown linearly from 0.
        seed: Of the random weights; the global random state is left alone.
        from_hub: Fill it with the weights that belong to the name, from the cache or the hub.

    Returns:
        The model in eval mode.

    Raises:
        ModelError: If timm does not know the name, or the model cannot take an option.
        CheckpointError: If the weights cannot be had.
    """
    _check_name(name)
    options: dict[str, Any] = {"num_classes": num_classes, "img_size": image_size}
    if drop_path > 0:
        options["drop_path_rate"] = drop_path
    with seeded(seed):
        model = _from_hub(name, options) if from_hub else _create(name, options)
    _check_patches(model, name, image_size)
    if drop_path == 0:  # not every model takes a rate, and the rate of some (Swin) is not 0 where none is given
        for module in model.modules():
            if type(module).__name__ == "DropPath":
                vars(module)["drop_prob"] = 0.0
    return model.eval()


def keep_blocks(model: nn.Module, num_blocks: int | None, *, name: str) -> None:
    """Cut a transformer down to its first blocks; drop-path rates grow to the same rate over fewer blocks.

    Args:
        model: A model whose blocks are a list ``model.blocks``, each of the same shapes.
        num_blocks: How many to keep; None keeps all.
        name: What to call the model in an error.

    Raises:
        ModelError: If the model has no such list, or fewer blocks.
    """
    if num_blocks is None:
        return
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList) or len({_shapes(block) for block in blocks}) != 1:
        raise ModelError(
            f"`num_blocks` needs a model with one list of equal blocks, which {name} does not have. Leave it out."
        )
    if num_blocks > len(blocks):
        raise ModelError(f"`num_blocks` must be at most {len(blocks)}, the blocks of {name}. Got {num_blocks}.")
    _respread_drop_path(blocks[:num_blocks], (len(blocks) - 1) / max(num_blocks - 1, 1))
    model.blocks = blocks[:num_blocks]


def renew_head(model: nn.Module, *, seed: int) -> None:
    """Fill the head's linear layers from a truncated normal of standard deviation 0.02, their biases with zeros.

    Args:
        model: The model; its head is the one `sensitune.sites` finds.
        seed: Of the values; the global random state is left alone.
    """
    generator = torch.Generator().manual_seed(seed)
    for name in find_head(model):
        for module in model.get_submodule(name).modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """What is drawn at random within depends on the seed alone; the global random state is as it was afterwards.

    Args:
        seed: The seed.

    Yields:
        Nothing.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reseed the accelerators
        yield


def _check_name(name: str) -> None:
    architecture, _, tag = name.partition(".")
    if not timm.models.is_model(architecture):
        close = difflib.get_close_matches(architecture, [*PUBLISHED_BACKBONES, *timm.list_models()], n=3)
        hint = f"Close names: {', '.join(close)}." if close else "`timm.list_models()` lists them."
        raise ModelError(f"{name!r} is not a timm model. {hint}")
    tags = timm.list_models(f"{architecture}.*", pretrained=True)
    if tag and name not in tags:
        raise ModelError(f"timm's {architecture} has no tag {tag!r}. It has: {', '.join(tags) or 'none'}.")


def _create(name: str, options: dict[str, Any], *, pretrained: bool = False) -> nn.Module:
    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except TypeError as error:
        if "img_size" in str(error):  # convolutional models take any size and have no such option
            return _create(name, options | {"img_size": None}, pretrained=pretrained)
        if "drop_path_rate" in str(error):
            raise ModelError(f"{name} has no drop-path. Set `drop_path` to 0.") from error
        raise


def _from_hub(name: str, options: dict[str, Any]) -> nn.Module:
    config = timm.models.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise CheckpointError(
            f"timm has no pretrained weights for {name}. Add a tag, or give a local file as `checkpoint`."
        )
    try:
        return _create(name, options, pretrained=True)
    except ModelError:
        raise
    except Exception as error:  # each transport of the hub has its own errors
        raise CheckpointError(
            f"The weights of {name} could not be fetched: the hub cannot be reached ({type(error).__name__}). "
            f"Download them elsewhere and give the local file as `checkpoint`."
        ) from error


def _check_patches(model: nn.Module, name: str, image_size: int | None) -> None:
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if image_size is not None and isinstance(patch, tuple) and image_size % math.lcm(*patch):
        raise ModelError(
            f"`image_size` must be a multiple of {math.lcm(*patch)}, the patch size of {name}. Got {image_size}."
        )


def _shapes(block: nn.Module) -> tuple[tuple[str, torch.Size], ...]:
    return tuple((name, tensor.shape) for name, tensor in block.state_dict().items())


def _respread_drop_path(blocks: nn.Module, factor: float) -> None:
    """Rates grow linearly with depth: stretched, they are those of a model built with fewer blocks."""
    for module in blocks.modules():
        if isinstance(module, DropPath):
            module.drop_prob *= factor
