"""Which modules are the head: those that make the logits, and no part of the trunk that they read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from sensitune.errors import ArgumentError, ModelError
from sensitune.sites._roles import is_norm
from sensitune.sites._wrapped import (
    is_timm_model,
    is_transformers_model,
    join,
    known_models,
    num_params,
    pretrained_cfg,
    unwrapped,
    weighted_children,
)

# What a model of one's own calls its last layer, where it is one; under any other name it is a layer like the others.
_CALLED = frozenset({"classification_head", "classifier", "cls_head", "fc", "head", "heads", "logits", "score"})
_TASK_MODEL = re.compile(r"For(\w*Classification\w*|QuestionAnswering(Simple)?|MultipleChoice|NextSentencePrediction)$")
_MOST = 0.1  # of a model's parameters, for what a head holds beside the layers that make the logits
_NAMED = "sensitune_head"
_COPY = ".modules_to_save."  # beside the original, in what PEFT makes of a head that it trains whole
_LISTS = (nn.ModuleList, nn.ModuleDict)


def find_head(model: nn.Module, head: str | Sequence[str] | None = None) -> tuple[str, ...]:
    """Names of the modules that form the newly initialised task classifier.

    timm's models say which they are. In a task model of transformers they are what follows the trunk; in a wrapper,
    those of the model inside, or its own last layer where that is called ``head``, ``classifier``, ``fc`` or the like.
    A norm inside a head is pretrained, so it is left to the ranking.

    Args:
        model: Any module; of what ``DataParallel``, ``DistributedDataParallel`` and ``torch.compile`` return, the model
            inside.
        head: Names of the modules, where it is known better: each is then taken whole. An empty sequence means that
            there is none. None looks for them, or takes what `name_head` has noted.

    Returns:
        The names; empty if the model has no head.

    Raises:
        ArgumentError: If `head` names something else than modules with parameters, each once.
        ModelError: If what looks like the head cannot be: it holds too much of the model, or there are several.
    """
    model = unwrapped(model)
    if head is not None:
        return _checked(model, head)
    if (noted := _noted(model)) is not None:
        return _checked(model, noted)
    whole = _found(model)
    found = [part for name in whole for part in _without_norms(name, model.get_submodule(name))]
    logits = sum(num_params(_last_layer(_original(model.get_submodule(name)))) for name in whole)
    beside = sum(num_params(_original(model.get_submodule(name))) for name in found if _COPY not in name) - logits
    total = num_params(model)
    if beside > _MOST * total:
        raise ModelError(
            f"What looks like the head of {type(model).__name__} ({', '.join(found)}) holds {beside:,} parameters "
            f"before the layer that makes the logits, {beside / total:.0%} of the model. Name the modules that are new "
            f"and to be trained whole, such as `head={found[-1]!r}`."
        )
    return tuple(found)


def name_head(model: nn.Module, head: str | Sequence[str]) -> None:
    """Note on a model which modules are its head, for everything that looks for it later.

    Args:
        model: The model; copies of it carry the note too.
        head: As in `find_head`.

    Raises:
        ArgumentError: As in `find_head`.
    """
    setattr(model, _NAMED, _checked(model, head))


def _noted(model: nn.Module) -> tuple[str, ...] | None:
    return vars(model).get(_NAMED)


def _checked(model: nn.Module, head: str | Sequence[str]) -> tuple[str, ...]:
    """The names that a caller gave."""
    names = (head,) if isinstance(head, str) else tuple(head)
    modules = dict(model.named_modules())
    for name in names:
        if not name or name not in modules:
            last = [each for each, _ in weighted_children(model)][-3:]
            raise ArgumentError(
                f"`head` names {name!r}, which is no module of {type(model).__name__}. Give full names as in "
                f"`model.named_modules()`; its last modules are {', '.join(last) or 'none'}."
            )
        if not num_params(modules[name]):
            raise ArgumentError(
                f"`head` names {name!r}, which has no parameters. Name the module that makes the logits."
            )
        if names.count(name) > 1 or any(name.startswith(f"{each}.") for each in names):
            raise ArgumentError(f"`head` names {name!r} twice, itself or within another. Name each module once.")
    return tuple(part for name in names for part in _listed(name, modules[name]))


def _listed(name: str, module: nn.Module) -> Iterator[str]:
    """A module, or the modules of a list, which nothing calls as a whole."""
    if not isinstance(module, _LISTS):
        yield name
        return
    for child_name, child in weighted_children(module):
        yield from _listed(f"{name}.{child_name}", child)


def _found(model: nn.Module) -> list[str]:
    """What makes the logits, norms included."""
    noted = _noted(model)
    if noted is not None:
        return list(noted)
    if is_timm_model(model):
        return _declared(model)
    if is_transformers_model(model):
        return _of_task_model(model) if _TASK_MODEL.search(type(model).__name__) else []
    return _of_wrapper(model)


def _declared(model: nn.Module) -> list[str]:
    """What timm's description of the checkpoint, else the model itself, calls the classifier."""
    modules = {name: module for name, module in model.named_modules() if num_params(module)}
    configured = pretrained_cfg(model).get("classifier") or ()
    names = [name for name in ((configured,) if isinstance(configured, str) else configured) if name in modules]
    if names or not callable(getattr(model, "get_classifier", None)):
        return names
    classifier = model.get_classifier()  # type: ignore[operator]  # nn.Module types every attribute as a tensor or a module
    wanted = classifier if isinstance(classifier, (tuple, list)) else (classifier,)
    return [name for name, module in modules.items() if any(module is each for each in wanted)]


def _of_task_model(model: nn.Module) -> list[str]:
    """What a task model of transformers has beside its trunk; its last layer, if that is of the labels' width, else."""
    children = weighted_children(model)
    labels = getattr(model.config, "num_labels", None)
    beside = [(name, child) for name, child in children if not _is_trunk(model, name, child)]
    if len(beside) == len(children) > 1:  # nothing says which is the trunk: it ends with the largest
        sizes = [num_params(child) for _, child in children[:-1]]
        beside = children[sizes.index(max(sizes)) + 1 :]
    if names := [name for name, child in beside if not _only_convolves(child, labels)]:
        return names
    inside = [join(name, each) for name, child in children if is_timm_model(child) for each in _declared(child)]
    last = _last_layer(model)
    width = getattr(last, "out_features", getattr(last, "out_channels", None))
    return inside or [name for name, module in model.named_modules() if module is last and width == labels]


def _is_trunk(model: nn.Module, name: str, child: nn.Module) -> bool:
    known = is_transformers_model(child) or is_timm_model(child)
    return name == model.base_model_prefix or known or isinstance(child, nn.Embedding)


def _only_convolves(module: nn.Module, labels: int | None) -> bool:
    """Whether a module is the end of a convolutional trunk: what is new before the logits is linear."""
    convolutions: list[Any] = [each for each in module.modules() if isinstance(each, (nn.Conv1d, nn.Conv2d))]
    return bool(convolutions) and all(each.out_channels != labels for each in convolutions)


def _of_wrapper(model: nn.Module) -> list[str]:
    """The head of a model that is neither timm's nor transformers': its own last layer, or that of the one inside."""
    children = weighted_children(model)
    own = any(True for _ in model.parameters(recurse=False))
    if len(children) == 1 and not own:
        name, child = children[0]
        return [join(name, each) for each in _found(child)]
    known = list(known_models(model))
    if children and children[-1][0] in _CALLED and not is_timm_model(children[-1][1]):
        if known:  # what follows a pretrained model is new
            return [children[-1][0]]
        last = _last_layer(children[-1][1])
        small = num_params(last) <= _MOST * num_params(model)
        return [name for name, module in model.named_modules() if module is last and small]
    heads = {name: [join(name, each) for each in _found(inside)] for name, inside in known}
    heads = {name: names for name, names in heads.items() if names}
    if len(heads) > 1:
        listed = ", ".join(name for names in heads.values() for name in names)
        raise ModelError(
            f"{type(model).__name__} holds several models with a head of their own: {listed}. "
            "Say with `head` which modules make the logits."
        )
    return next(iter(heads.values()), [])


def _original(module: nn.Module) -> nn.Module:
    """A module, or the one that PEFT has made a copy of to train."""
    original = getattr(module, "original_module", module)
    return original if isinstance(original, nn.Module) else module


def _last_layer(module: nn.Module) -> nn.Module:
    """The last layer with a weight matrix, in the order of registration; the module itself if it has none."""
    layers = [each for each in module.modules() if any(p.dim() > 1 for p in each.parameters(recurse=False))]
    return layers[-1] if layers else module


def _without_norms(name: str, module: nn.Module) -> Iterator[str]:
    """The head's modules that hold parameters, but for norms; lists, which nothing calls, one by one."""
    if not isinstance(module, _LISTS) and not any(is_norm(each) for each in module.modules()):
        if num_params(module):
            yield name
        return
    for child_name, child in module.named_children():
        yield from _without_norms(f"{name}.{child_name}", child)
