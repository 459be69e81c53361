"""What holds of every tuned model, as assertions: exact, reversible, portable, and untouched by what is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

State = dict[str, torch.Tensor]
Inputs = torch.Tensor | Mapping[str, torch.Tensor]


def state_of(model: nn.Module) -> State:
    """A copy of the model's state dict."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_same_state(first: nn.Module | State, second: nn.Module | State) -> None:
    """The same names, shapes and dtypes, and every value equal bit for bit, NaN included."""
    one, other = (each.state_dict() if isinstance(each, nn.Module) else each for each in (first, second))
    assert one.keys() == other.keys(), f"Names differ: {sorted(one.keys() ^ other.keys())}."
    changed = [name for name in one if not _bits_equal(one[name], other[name])]
    assert not changed, f"Values differ: {changed}."


def _bits_equal(first: torch.Tensor, second: torch.Tensor) -> bool:
    if (first.shape, first.dtype) != (second.shape, second.dtype):
        return False
    one, other = (each.detach().cpu().contiguous().view(-1).view(torch.uint8) for each in (first, second))
    return torch.equal(one, other)


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """What runs inside leaves the model as it was: values, names, modules, hooks, modes, what trains and is active."""
    state, before = state_of(model), _structure(model)
    yield
    assert_same_state(state, model)
    after = _structure(model)
    for aspect, found in before.items():
        now = after[aspect]
        changed = {name: (found.get(name), now.get(name)) for name in found | now if found.get(name) != now.get(name)}
        assert not changed, f"{aspect}, before and after: {changed}."


def _structure(model: nn.Module) -> dict[str, dict[str, Any]]:
    return {
        "trained": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        "parameters": {name: id(parameter) for name, parameter in model.named_parameters()},
        "modules": {name: (id(module), type(module)) for name, module in model.named_modules()},
        "training": {name: module.training for name, module in model.named_modules()},
        "hooks": {name: _hooks(module) for name, module in model.named_modules()},
        "attributes": {f"{name}.{own}": True for name, module in model.named_modules() for own in vars(module)},
        "adapters": {"all": dict(getattr(model, "peft_config", {})), "active": getattr(model, "active_adapter", None)},
    }


def _hooks(module: nn.Module) -> dict[str, list[Any]]:
    return {name: list(found.values()) for name, found in vars(module).items() if name.endswith("_hooks") and found}


def output_of(model: nn.Module, inputs: Inputs) -> torch.Tensor:
    """The model's output, or its logits, for a tensor or for keyword arguments."""
    found = model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
    result: torch.Tensor = getattr(found, "logits", found)
    return result


def assert_merged_equals_unmerged(tuned: PeftModel, inputs: Inputs, **tolerances: float) -> nn.Module:
    """Merge for good: the same output, from a model in which nothing of the tuner is left; that model is returned."""
    expected = output_of(tuned, inputs)
    merged = tuned.merge_and_unload()
    torch.testing.assert_close(output_of(merged, inputs), expected, **tolerances)
    _assert_plain(merged)
    return merged


def _assert_plain(model: nn.Module) -> None:
    left = [name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    left += [name for name in model.state_dict() if "spt_" in name or "modules_to_save" in name]
    assert not left, f"Of the tuner there is left: {left}."


def assert_unmerging_restores(
    tuned: PeftModel,
    inputs: Inputs | None = None,
    *,
    adapters: Sequence[str] | None = None,
    safe_merge: bool = False,
    **tolerances: float,
) -> None:
    """Merging the adapters (None: the active ones) keeps the output; unmerging restores everything bit for bit."""
    names = None if adapters is None else list(adapters)
    if names is not None and inputs is not None:
        tuned.base_model.set_adapter(names)
    expected = None if inputs is None else output_of(tuned, inputs)
    with untouched(tuned):
        tuned.base_model.merge_adapter(names, safe_merge=safe_merge)
        if inputs is not None:
            torch.testing.assert_close(output_of(tuned, inputs), expected, **tolerances)
        tuned.base_model.unmerge_adapter()
    if inputs is not None and expected is not None:
        assert torch.equal(output_of(tuned, inputs), expected)


def assert_unloading_restores(tuned: PeftModel, base: nn.Module, *, trained: str = "nothing") -> None:
    """Taking the adapter out gives the base: its class, its names, and every value bit for bit.

    PEFT leaves the copy of a module that trained whole, such as the head, in its place: `trained` is that module.
    """
    unloaded = tuned.unload()
    assert type(unloaded) is type(base)
    before, after = base.state_dict(), unloaded.state_dict()
    own = [name for name in before if name.startswith(f"{trained}.")]
    assert_same_state(dict(after) | {name: before[name] for name in own if name in after}, dict(before))


def assert_reload_equals(
    tuned: PeftModel, base: nn.Module, folder: Path | str, inputs: Inputs, *, exact: bool = False, **options: Any
) -> PeftModel:
    """Saved and loaded on `base`: every value bit for bit and the same output; the loaded model is returned.

    Not equal bit for bit: BLAS rounds by where in memory its operands lie. `exact` asks for it nevertheless.
    """
    tuned.save_pretrained(folder)
    loaded = PeftModel.from_pretrained(base, folder, **options).eval()
    assert_same_state(loaded, tuned)
    found, expected = output_of(loaded, inputs), output_of(tuned, inputs)
    torch.testing.assert_close(found, expected, **({"rtol": 0.0, "atol": 0.0} if exact else {}))
    return loaded
