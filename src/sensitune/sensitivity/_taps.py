"""Gradients of weights that need not require one: those of linear layers, from what goes in and what comes back.

For ``y = x Wᵀ + b`` and δ the gradient of y, the gradient of W is ``δᵀ x`` and that of b is ``Σ δ``, whether W is a
parameter at all, is stored in four bits, or lies on a disk while backward runs. A tap is a node behind the layer in
autograd's graph that keeps x as the layer itself would for a trained weight: activation checkpointing drops it and
computes it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from sensitune.sites import is_conv1d, is_plain_linear, parent_reads_weight, quantised_kind

Arrived: TypeAlias = Callable[[str, torch.Tensor], None]
Called: TypeAlias = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Tap:
    """A linear layer whose gradients are taken from its input and output.

    Attributes:
        module: The layer.
        names: Its own name of each scored parameter (``weight``, ``bias``) -> the full name.
    """

    module: nn.Module
    names: Mapping[str, str]

    @contextmanager
    def attached(self, called: Called, arrived: Arrived) -> Iterator[None]:
        """Watch the layer's calls.

        Args:
            called: Told of every parameter's name at each call that autograd records.
            arrived: Given a parameter's name and its gradient from one call, of the parameter's shape.

        Yields:
            Nothing.
        """
        transposed = is_conv1d(self.module)

        def back(x: torch.Tensor, grad: torch.Tensor) -> None:
            flat = grad.reshape(-1, grad.shape[-1])
            for own, name in self.names.items():
                if own == "bias":
                    arrived(name, flat.sum(0))
                    continue
                inputs = x.reshape(-1, x.shape[-1]).to(flat)
                arrived(name, inputs.t() @ flat if transposed else flat.t() @ inputs)

        def tapped(_: nn.Module, args: Any, kwargs: Any, output: torch.Tensor) -> torch.Tensor | None:
            if not torch.is_grad_enabled():
                return None
            for name in self.names.values():
                called(name)
            x = args[0] if args else next(iter(kwargs.values()))
            # A layer whose input needs no gradient would not be in the graph at all.
            anchor = torch.zeros((), requires_grad=True)
            result: torch.Tensor = _Behind.apply(output, x.detach(), anchor, back)
            return result

        handle = self.module.register_forward_hook(tapped, with_kwargs=True, prepend=True)
        try:
            yield
        finally:
            handle.remove()


class _Behind(torch.autograd.Function):
    """Hands on a layer's output as it is, and its gradient to `back`."""

    @staticmethod
    def forward(
        ctx: Any, y: torch.Tensor, x: torch.Tensor, anchor: torch.Tensor, back: Callable[..., None]
    ) -> torch.Tensor:
        del anchor
        ctx.save_for_backward(x)
        ctx.back = back
        return y.clone()  # no view of y: the model may go on to change it in place

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        ctx.back(x, grad)
        return grad, None, None, None


@dataclass(frozen=True, eq=False)
class Loaded:
    """A parameter that accelerate keeps elsewhere and puts into its module for the length of a call, anew each time.

    Attributes:
        module: The module.
        own: The parameter's own name.
        name: Its full name.
    """

    module: nn.Module
    own: str
    name: str

    @property
    def names(self) -> Mapping[str, str]:
        """As of a `Tap`."""
        return {self.own: self.name}

    @contextmanager
    def attached(self, called: Called, arrived: Arrived) -> Iterator[None]:
        """Watch the module's calls; see `Tap.attached`."""

        def ask() -> None:
            parameter = self.module._parameters[self.own]
            if not torch.is_grad_enabled() or parameter is None or parameter.is_meta:
                return
            called(self.name)
            parameter.requires_grad_(True)
            parameter.register_post_accumulate_grad_hook(hand_on)

        def hand_on(parameter: torch.Tensor) -> None:
            gradient, parameter.grad = parameter.grad, None
            assert gradient is not None
            arrived(self.name, gradient)

        inner = vars(self.module).get("_old_forward")
        if inner is None:  # a module above loads it, before this one is called
            handle = self.module.register_forward_pre_hook(lambda *_: ask())
            try:
                yield
            finally:
                handle.remove()
            return

        def forward(*args: Any, **kwargs: Any) -> Any:
            ask()
            return inner(*args, **kwargs)

        vars(self.module)["_old_forward"] = forward
        try:
            yield
        finally:
            vars(self.module)["_old_forward"] = inner


def find_taps(model: nn.Module, names: Iterable[str], *, by_layer: bool) -> list[Tap | Loaded]:
    """What gives the gradients that autograd cannot give, or is not to.

    Args:
        model: The model.
        names: Full names of the scored parameters.
        by_layer: Whether to take those of every linear layer; False = only of quantised and offloaded ones.

    Returns:
        One for each linear layer, and for each other parameter that is offloaded. Names that none has are autograd's.
    """
    modules = dict(model.named_modules())
    of_layers: dict[str, dict[str, str]] = {}
    found: list[Tap | Loaded] = []
    for name in names:
        module_name, _, own = name.rpartition(".")
        module = modules[module_name]
        parameter = module._parameters[own]
        assert parameter is not None
        parent_name, _, last = module_name.rpartition(".")
        linear = is_plain_linear(module) and not (module_name and parent_reads_weight(modules[parent_name], last))
        linear = linear and own in {"weight", "bias"}
        if quantised_kind(module) is not None or (linear and (by_layer or parameter.is_meta)):
            of_layers.setdefault(module_name, {})[own] = name
        elif parameter.is_meta:
            found.append(Loaded(module, own, name))
    return [*(Tap(modules[name], owns) for name, owns in of_layers.items()), *found]


@contextmanager
def all_attached(taps: Sequence[Tap | Loaded], called: Called, arrived: Arrived) -> Iterator[None]:
    """Watch the calls of all layers; see `Tap.attached`."""
    with ExitStack() as stack:
        for tap in taps:
            stack.enter_context(tap.attached(called, arrived))
        yield
