"""A linear probe: the head fitted to features of the frozen backbone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from sensitune.errors import ArgumentError, ModelError
from sensitune.sites import find_head
from sensitune.training._features import FrozenFeatures, features_of

_PENALTIES: Final = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class HeadFit:
    """How a head was fitted.

    Attributes:
        penalty: The chosen strength.
        train_loss: Mean cross-entropy on the images it was fitted to, without the penalty.
        accuracy: What that strength reached where the strength was chosen, in [0, 1]; None if there was no choice.
    """

    penalty: float
    train_loss: float
    accuracy: float | None


def fit_head(
    model: nn.Module,
    train: Batches,
    validation: Batches | None = None,
    *,
    penalties: Sequence[float] = _PENALTIES,
    head: str | Sequence[str] | None = None,
) -> HeadFit:
    """Fit a model's linear head to some images, the backbone frozen and in eval mode; changes the head in place.

    Minimises mean cross-entropy + penalty/2 · ‖W‖² over the weight W and the bias of standardised features (mean 0,
    variance 1 on the images it is fitted to), to convergence, by L-BFGS in float64 from zero; the standardisation is
    then folded into the head. The strength is the one whose head is right most often on the validation images; the
    larger one of equals. Without such images every fifth one of `train` is held out to choose it, and the head is then
    fitted to all.

    Args:
        model: Its head is one linear layer with a bias.
        train: Images ``[batch, 3, height, width]`` and class ids ``[batch]``.
        validation: Likewise.
        penalties: Strengths to choose from; one alone is taken as it is.
        head: Name of the head; None finds it, see `sensitune.sites.find_head`.

    Returns:
        What was chosen and reached.

    Raises:
        ModelError: If the head is not one linear layer with a bias.
        ArgumentError: If there is no strength to choose from, or one is not above 0.
    """
    if not penalties or min(penalties) <= 0:
        raise ArgumentError(f"`penalties` must be numbers above 0, at least one. Got {list(penalties)}.")
    linear = _linear_head(model, head)
    fitted_to = _Problem.of(features_of(model, linear, train), linear.out_features)
    if len(penalties) == 1:
        chosen, accuracy = penalties[0], None
    else:
        if validation is not None:
            asked = _Problem.of(features_of(model, linear, validation), linear.out_features)
            tried = fitted_to
        else:
            tried, asked = fitted_to.held_out()
        reached = {each: asked.accuracy(*tried.solve(each)) for each in sorted(penalties)}
        chosen = max(sorted(penalties, reverse=True), key=lambda each: reached[each])
        accuracy = reached[chosen]
    weight, bias = fitted_to.solve(chosen)
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
    return HeadFit(chosen, fitted_to.loss(weight, bias), accuracy)


@dataclass(frozen=True)
class _Problem:
    """Features ``[images, width]`` in float64, class ids ``[images]``, and how many classes there are."""

    features: Tensor
    labels: Tensor
    num_classes: int

    @classmethod
    def of(cls, found: FrozenFeatures, num_classes: int) -> _Problem:
        return cls(found.features.double(), found.labels, num_classes)

    def held_out(self) -> tuple[_Problem, _Problem]:
        """Four fifths of the images and the others."""
        fifth = torch.arange(len(self.labels)) % 5 == 4
        parts = (_Problem(self.features[each], self.labels[each], self.num_classes) for each in (~fifth, fifth))
        return next(parts), next(parts)

    def solve(self, penalty: float) -> tuple[Tensor, Tensor]:
        """Weight ``[classes, width]`` and bias ``[classes]`` for the features as they are."""
        mean, scale = self.features.mean(0), self.features.std(0, correction=0)
        scale = torch.where(scale > 0, scale, 1.0)
        standard = (self.features - mean) / scale
        with torch.enable_grad():
            weight = standard.new_zeros(self.num_classes, standard.shape[1]).requires_grad_(True)
            bias = standard.new_zeros(self.num_classes).requires_grad_(True)
            optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, history_size=20, line_search_fn="strong_wolfe")

            def objective() -> Tensor:
                optimizer.zero_grad()
                loss = functional.cross_entropy(standard @ weight.T + bias, self.labels)
                total = loss + 0.5 * penalty * weight.square().sum()
                total.backward()
                return total

            optimizer.step(objective)
        weight, bias = weight.detach() / scale, bias.detach()
        return weight, bias - weight @ mean

    def accuracy(self, weight: Tensor, bias: Tensor) -> float:
        return float(((self.features @ weight.T + bias).argmax(1) == self.labels).double().mean())

    def loss(self, weight: Tensor, bias: Tensor) -> float:
        return float(functional.cross_entropy(self.features @ weight.T + bias, self.labels))


def _linear_head(model: nn.Module, head: str | Sequence[str] | None) -> nn.Linear:
    names = find_head(model, head)
    module = model.get_submodule(names[0]) if len(names) == 1 else None
    if not isinstance(module, nn.Linear) or module.bias is None:
        raise ModelError(
            f"Only a head that is one linear layer with a bias can be fitted. {type(model).__name__} has "
            f"{', '.join(names) or 'none'}. Let the head start at random."
        )
    return module
