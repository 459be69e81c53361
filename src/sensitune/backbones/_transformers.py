"""transformers' image classifiers: a folder, or a repository of the hub by its name, as a backbone like timm's."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
from torch import nn

from sensitune._schema import show_name, show_reason
from sensitune.backbones._building import renew_head, seeded
from sensitune.backbones._filling import check_finite, count_names
from sensitune.backbones._focus import FOCUS_NAME
from sensitune.backbones._hash import is_within, weights_hash
from sensitune.backbones._processor import read_image_input
from sensitune.backbones._published import PUBLISHED_BACKBONES
from sensitune.backbones._types import Backbone, BackboneSpec
from sensitune.errors import ArgumentError, CheckpointError, MissingPackageError, ModelError
from sensitune.sites import find_head, name_head

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_RATE = "drop_path_rate"  # what every architecture with drop-path calls it in its configuration


def of_transformers(spec: BackboneSpec) -> bool:
    """Whether a spec names a folder in transformers' format or a repository.

    timm's names hold no slash, and mean timm's models although there may be a folder of the name.

    Args:
        spec: Any spec.

    Returns:
        Whether it does; nothing is fetched or read for it.
    """
    name = spec.name
    if "/" in name:
        return ":" not in name  # hf-hub:OWNER/NAME is a repository of timm's
    known = name in PUBLISHED_BACKBONES or name == FOCUS_NAME or timm.models.is_model(name.partition(".")[0])
    return not known and (Path(name) / "config.json").is_file()


def local_weights(spec: BackboneSpec) -> str | None:
    """The file or folder of a spec's weights on this machine; None of those that belong to its name elsewhere."""
    if spec.checkpoint is not None or not of_transformers(spec):
        return spec.checkpoint
    is_local = Path(spec.name).expanduser().is_dir() or not _REPOSITORY.fullmatch(spec.name)
    return spec.name if is_local else None


def public_spec(spec: BackboneSpec) -> BackboneSpec:
    """The spec without where things lie on this machine: files and folders go by their own names."""
    local = local_weights(spec)
    if local is None:
        return spec
    own = Path(local).expanduser().resolve().name
    # The dot and slash tell a folder from one of timm's models of the same name.
    return replace(spec, name=f"./{own}" if of_transformers(spec) else spec.name, checkpoint=own)


def load_transformers(
    spec: BackboneSpec, *, num_classes: int, drop_path: float, seed: int, keep_head: bool
) -> Backbone:
    """What `load_backbone` does, for a model of transformers: its weights are read without running code in them.

    Args:
        spec: What `of_transformers` accepts. Its checkpoint is the folder, if that is not where its name says.
        num_classes: Outputs of the head.
        drop_path: Largest drop-path rate of the blocks while training.
        seed: Of the new head, and of all weights if the spec asks for random ones.
        keep_head: Take the head from the folder too.

    Returns:
        The backbone, in float32.

    Raises:
        ArgumentError: If the spec asks for what only timm's models have.
        ModelError: If it is no image classifier, or has no drop-path.
        CheckpointError: If its weights cannot be had, or are not all there.
    """
    if spec.num_blocks is not None:
        raise ArgumentError(
            f"`num_blocks` cuts timm's models. Got {spec.num_blocks} for {spec.name} of transformers. Leave it out."
        )
    folder = _folder(spec)
    config = _read_config(folder, spec.name)
    expected = read_image_input(folder, config, spec)
    config.num_labels = num_classes if not keep_head else config.num_labels
    if keep_head and config.num_labels != num_classes:
        raise CheckpointError(f"The head of {spec.name} has {config.num_labels} classes, not {num_classes}.")
    _set_drop_path(config, drop_path, spec.name)
    model, dropped = _build(folder, config, spec, seed, keep_head)
    _hide_the_machine(model, spec)
    if spec.head is not None:
        name_head(model, spec.head)
    _check_head(model, spec.name)
    if not keep_head:
        renew_head(model, seed=seed)
    return Backbone(
        model=model.eval(),
        spec=spec,
        image_size=expected.image_size,
        mean=expected.mean,
        std=expected.std,
        interpolation=expected.interpolation,
        weights_hash=weights_hash(model),
        dropped=dropped,
        class_names=tuple(config.id2label[index] for index in range(num_classes)) if keep_head else (),
    )


def with_drop_path(model: nn.Module, rate: float, *, name: str) -> nn.Module:
    """A model of transformers once more, with another rate and random weights.

    Args:
        model: From `load_transformers`.
        rate: Largest drop-path rate of its blocks.
        name: What to call it in an error.

    Returns:
        The other model, in eval mode.
    """
    config: Any = copy.deepcopy(model.config)
    _set_drop_path(config, rate, name)
    kind: Any = type(model)
    with seeded(0):
        fresh: nn.Module = kind(config)
    return fresh.eval()


def check_drop_path(model: nn.Module, rate: float, *, name: str) -> None:
    """Make sure that a model has a drop-path if one is asked for.

    Args:
        model: From `load_transformers`.
        rate: As in `with_drop_path`.
        name: As there.

    Raises:
        ModelError: If it has none.
    """
    _set_drop_path(copy.deepcopy(model.config), rate, name)


def _set_drop_path(config: Any, rate: float, name: str) -> None:
    if hasattr(config, _RATE):
        setattr(config, _RATE, rate)
    elif rate > 0:
        raise ModelError(f"{name} has no drop-path. Set `drop_path` to 0.")


def _folder(spec: BackboneSpec) -> Path:
    """The files on this machine, fetched from the hub if need be: no more than can be read without running code."""
    local = local_weights(spec)
    if local is not None:
        folder = Path(local).expanduser()
        if (folder / "config.json").is_file():
            return folder
        what = "`checkpoint`" if spec.checkpoint is not None else "The model"
        raise CheckpointError(
            f"{what} {local} is no folder in transformers' format: it has no config.json. Give a timm model's name, a "
            "folder that `save_pretrained` wrote, or OWNER/NAME of a repository."
        )
    from huggingface_hub import snapshot_download

    patterns = ["config.json", "preprocessor_config.json", "processor_config.json"]
    patterns += ["*.safetensors", "*.safetensors.index.json"] if spec.pretrained else []
    try:
        return Path(snapshot_download(spec.name, allow_patterns=patterns))
    except Exception as error:  # each transport of the hub has its own errors
        raise CheckpointError(
            f"{spec.name} could not be fetched: the hub cannot be reached, or has no such repository "
            f"({type(error).__name__}). Download it elsewhere and give the folder, or correct the name."
        ) from error


def _read_config(folder: Path, name: str) -> Any:
    from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, AutoConfig

    try:
        config = AutoConfig.from_pretrained(str(folder))
    except Exception as error:  # almost any, by what is wrong with the file
        raise ModelError(
            f"transformers cannot read config.json of {show_name(name)} ({type(error).__name__}: {show_reason(error)})."
        ) from error
    if config.model_type == "timm_wrapper":
        own = getattr(config, "architecture", None)
        raise ModelError(f"{show_name(name)} is a model of timm's. Give its own name: {own}.")
    if type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        advice = " `sensitune advise` takes language models with texts." if hasattr(config, "vocab_size") else ""
        raise ModelError(
            f"{show_name(name)} is of the type {config.model_type}, of which transformers has no image classifier."
            f"{advice}"
        )
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(f"{show_name(name)} stores its weights in few bits. Give the model as it was trained.")
    return config


def _build(
    folder: Path, config: Any, spec: BackboneSpec, seed: int, keep_head: bool
) -> tuple[nn.Module, tuple[str, ...]]:
    """The model with its weights, and the names of those in the files that it has no place for."""
    from transformers import AutoModelForImageClassification

    maker: Any = AutoModelForImageClassification
    model: Any
    if not spec.pretrained:
        with _quiet(), seeded(seed), _naming(spec):
            model = maker.from_config(config)
        return model.float(), ()
    with _quiet(), seeded(seed), _naming(spec):
        # Files of pickles are read by torch with weights_only, which runs no code.
        model, found = maker.from_pretrained(
            str(folder), config=config, output_loading_info=True, ignore_mismatched_sizes=True
        )
    model = model.float()
    head = () if keep_head else find_head(model)
    # Older releases say the names alone, newer ones the shapes with them.
    reshaped = [each if isinstance(each, str) else each[0] for each in found["mismatched_keys"]]
    misfits = {"missing": found["missing_keys"], "of another shape": reshaped}
    outside = {what: sorted(name for name in names if not is_within(name, head)) for what, names in misfits.items()}
    problems = [count_names(names, what) for what, names in outside.items() if names]
    if problems:
        raise CheckpointError(
            f"The weights of {spec.name} do not fit its config.json: {'; '.join(problems)}. Download it again."
        )
    for name, tensor in model.state_dict().items():
        if not is_within(name, head):
            check_finite(name, tensor, spec.name)
    return model, tuple(sorted(found["unexpected_keys"]))


def _check_head(model: nn.Module, name: str) -> None:
    if not find_head(model):
        raise ModelError(f"{name} has no head that could be found. Name its modules with `head`.")


def _hide_the_machine(model: Any, spec: BackboneSpec) -> None:
    """PEFT notes in adapter folders, which are made to be shared, where a model says that it comes from."""
    model.name_or_path = model.config._name_or_path = public_spec(spec).name


@contextmanager
def _naming(spec: BackboneSpec) -> Iterator[None]:
    try:
        yield
    except (ImportError, MissingPackageError) as error:
        raise ModelError(f"{spec.name} needs a package that is not installed: {show_reason(error)}.") from error
    except Exception as error:  # almost any, by what is wrong with the files
        raise CheckpointError(
            f"transformers cannot load {show_name(spec.name)} ({type(error).__name__}: {show_reason(error)}). Its "
            "weights must be safetensors files, or pickles of plain tensors, that are whole."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """That a head is new is no news, and a bar for half a second of reading is none either."""
    import transformers.utils.logging

    logging: Any = transformers.utils.logging
    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
