"""Language models as transformers reads them: a folder, a GGUF file in one, or a repository of the hub."""

from __future__ import annotations

from importlib.util import find_spec
from logging import ERROR
from pathlib import Path
from typing import Any

from torch import nn

from sensitune._schema import show_name, show_reason
from sensitune.advice._text import TextData
from sensitune.errors import MissingPackageError, ModelError


def load_language_model(name: str, data: TextData) -> tuple[nn.Module, Any]:
    """Load a model for the task that the data sets, and its tokenizer.

    Args:
        name: A folder in transformers' format, one that holds a GGUF file, or a repository's name.
        data: With classes the model gets a new head for them; without it goes on with texts.

    Returns:
        The model in float32, and the tokenizer with a padding token.

    Raises:
        MissingPackageError: If a GGUF file is to be read without the package gguf.
        ModelError: If transformers cannot load it, or the tokenizer has no token to pad with.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    file, level = _gguf(name), logging.get_verbosity()
    options: dict[str, Any] = {} if file is None else {"gguf_file": file}
    logging.set_verbosity(ERROR)  # that the new head is not in the files is no news
    model: Any
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
        if file is not None:
            options |= _unpacked()
        if data.labels is None:
            model = AutoModelForCausalLM.from_pretrained(name, **options)
        else:
            model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=len(data.classes), **options)
    except Exception as error:  # almost any, by what is wrong with the files or the network
        raise ModelError(
            f"transformers cannot load {show_name(name)} ({type(error).__name__}: {show_reason(error)}). Give a folder "
            "in transformers' format, one with a GGUF file, or a repository of the hub."
        ) from error
    finally:
        logging.set_verbosity(level)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ModelError(f"The tokenizer of {show_name(name)} has no token to pad with. Set its pad_token.")
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    return model.float(), tokenizer


def _gguf(name: str) -> str | None:
    """The name of the GGUF file in a folder that holds no other model."""
    folder = Path(name)
    if not folder.is_dir() or (folder / "config.json").exists():
        return None
    files = sorted(path.name for path in folder.glob("*.gguf"))
    if not files:
        return None
    if find_spec("gguf") is None:
        raise MissingPackageError(
            f"{show_name(name)} holds a GGUF file, which needs the package gguf: pip install gguf"
        )
    if len(files) > 1:
        raise ModelError(f"{show_name(name)} holds {len(files)} GGUF files. Give a folder with one.")
    return files[0]


def _unpacked() -> dict[str, Any]:
    """Releases of transformers that can compute with packed blocks are told to unpack them, as all others do."""
    import transformers

    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}
