"""Tune parameters that sit on no linear layer: norms, layer scales, class tokens, tables.

The owner of such a parameter is not wrapped, since it may be the root module or hold other tuned layers. Instead it
gets one child, `SptTensors`, that holds the trained values, and its class becomes a subclass of itself in which the
parameter's name is a property: base value plus the active adapters' deltas. So the model's own code reads the tuned
value from wherever it runs, the stored parameter and its name in the state dict stay untouched, and taking the child
away restores everything. (``torch.nn.utils.parametrize`` works the same way, but its result cannot be pickled.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sensitune.errors import ModelError
from sensitune.tuner._layer import SptLayer
from sensitune.tuner._notes import keeps_notes, run_without_notes, state_without_notes

CHILD = "tuned_tensors"
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


class SptTensors(SptLayer, nn.Module):
    """The trained deltas of one module's own parameters."""

    in_features = out_features = None  # PEFT expects the names on every tuner layer; bare tensors have neither

    def __init__(self, owner: nn.Module, adapter_name: str) -> None:
        nn.Module.__init__(self)
        self._owner = [owner]  # in a list, so that the owner does not become a submodule of its own child
        self.shown = True
        self.init_containers()
        self._active_adapter = [adapter_name]

    def get_base_layer(self) -> nn.Module:
        """The module whose parameters are tuned.

        Returns:
            The owner.
        """
        return self._owner[0]

    @property
    def tuned_names(self) -> frozenset[str]:
        """The owner's own parameter names that any adapter tunes."""
        return frozenset(plan.name for plans in self.plans.values() for plan in plans.values())

    def forward(self) -> None:
        """Not a layer; the owner reads the tuned values as its own attributes."""
        raise NotImplementedError("SptTensors is read through its owner's attributes and is never called.")

    def __repr__(self) -> str:
        return "sensitune." + super().__repr__()


def attach(owner: nn.Module, adapter_name: str) -> SptTensors:
    """Give a module its `SptTensors`, or return the one it has.

    Args:
        owner: The module that owns the parameters.
        adapter_name: The adapter that is being added.

    Returns:
        The child.

    Raises:
        ModelError: If the module is a container that would run its new child as a layer.
    """
    existing = owner._modules.get(CHILD)
    if isinstance(existing, SptTensors):
        return existing
    if isinstance(owner, _CONTAINERS):
        raise ModelError(
            f"A parameter that {type(owner).__name__} holds itself cannot be tuned: the container would run what is "
            "added to it. Leave it out with `exclude`."
        )
    child = SptTensors(owner, adapter_name)
    owner.add_module(CHILD, child)
    if "_old_forward" in vars(owner):
        vars(owner)["_old_forward"] = _Shown(child, vars(owner)["_old_forward"])
        child.shown = False
    return child


def expose(owner: nn.Module) -> None:
    """Let a module's attributes show the tuned values of everything its `SptTensors` now tunes.

    Args:
        owner: A module that `attach` was called on.
    """
    child = owner._modules[CHILD]
    assert isinstance(child, SptTensors)
    owner.__class__ = _tuned_class(_plain_class(owner), child.tuned_names, keeps_notes(owner))


def detach(owner: nn.Module) -> None:
    """Undo `attach` and `expose`.

    Args:
        owner: A module that `attach` was called on.
    """
    owner.__class__ = _plain_class(owner)
    inner = vars(owner).get("_old_forward")
    if isinstance(inner, _Shown):
        vars(owner)["_old_forward"] = inner.forward
    del owner._modules[CHILD]


class _Shown:
    """The forward of an owner that accelerate hooks: tuned values are shown inside it alone.

    Before and after it accelerate moves the parameters to and fro by the same attributes, and must find the base's.

    Args:
        child: The owner's tuned values.
        forward: The owner's own forward.
    """

    def __init__(self, child: SptTensors, forward: Any) -> None:
        self.child = child
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.child.shown = True
        try:
            return self.forward(*args, **kwargs)
        finally:
            self.child.shown = False


def _plain_class(owner: nn.Module) -> type[nn.Module]:
    plain: type[nn.Module] = getattr(type(owner), "_spt_plain_class", type(owner))
    return plain


_TUNED_CLASSES: dict[tuple[type[nn.Module], frozenset[str], bool], type[nn.Module]] = {}


def _tuned_class(plain: type[nn.Module], names: frozenset[str], notes: bool) -> type[nn.Module]:
    """The subclass of `plain` whose parameters `names` are read through the tuner; one per combination, so == works."""
    key = (plain, names, notes)
    if key not in _TUNED_CLASSES:
        _TUNED_CLASSES[key] = _make_tuned_class(*key)
    return _TUNED_CLASSES[key]


def _make_tuned_class(plain: type[nn.Module], names: frozenset[str], notes: bool) -> type[nn.Module]:
    body: dict[str, Any] = {name: property(_reader(name), _writer(name), _deleter(name)) for name in names}
    if notes:
        body["forward"] = lambda self, *args, **kwargs: run_without_notes(plain, self, *args, **kwargs)
    body |= {
        "_spt_plain_class": plain,
        "__module__": plain.__module__,
        "__qualname__": plain.__qualname__,
        "__doc__": plain.__doc__,
        "__reduce_ex__": lambda self, protocol: (_rebuild, (plain, names, notes), state_without_notes(self)),
    }
    return type(plain.__name__, (plain,), body)


def _reader(name: str) -> Any:
    def read(owner: nn.Module) -> torch.Tensor | None:
        child = owner._modules.get(CHILD)
        if name not in vars(owner) and name not in owner._parameters:
            raise AttributeError(name)  # FSDP1 takes parameters away for a moment and asks whether they are gone
        base = vars(owner).get(name, owner._parameters.get(name))
        # Between two forwards FSDP compares the attribute with its own parameter, to find what the user replaced; that
        # of FSDP2 is a process's shard (a DTensor), and while a forward runs the gathered tensor stands in its place.
        if child is None or base is None or getattr(base, "_fsdp_flattened", False) or hasattr(base, "device_mesh"):
            return base
        assert isinstance(child, SptTensors)
        if not child.shown:
            return base  # type: ignore[no-any-return]
        if child.disable_adapters and child.merged:
            child.unmerge()
        value: torch.Tensor = child.effective(name)
        return value

    read.__doc__ = f"`{name}` with the active adapters' deltas added."
    return read


def _writer(name: str) -> Any:
    """FSDP1 replaces parameters by its gathered tensors while a forward runs; they are base values too."""

    def write(owner: nn.Module, value: torch.Tensor) -> None:
        vars(owner)[name] = value

    return write


def _deleter(name: str) -> Any:
    def delete(owner: nn.Module) -> None:
        del vars(owner)[name]

    return delete


def _rebuild(plain: type[nn.Module], names: frozenset[str], notes: bool) -> nn.Module:
    """Make an empty instance for `copy.deepcopy` and `pickle`, which fill in the state."""
    tuned = _tuned_class(plain, names, notes)
    return tuned.__new__(tuned)
