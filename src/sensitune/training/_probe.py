"""A linear probe: the head fitted to features of the frozen backbone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from sensitune.errors import ModelError
from sensitune.sites import find_head
from sensitune.training._features import features_of


def fit_head(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    weight_decay: float = 1e-2,
    max_iterations: int = 50,
    head: str | Sequence[str] | None = None,
) -> float:
    """Fit a model's linear head to some images, the backbone frozen and in eval mode; changes the head in place.

    Minimises mean cross-entropy + weight_decay/2 · ‖W‖² by L-BFGS from the head's present values. The penalty keeps the
    loss, and with it the backbone's gradients, from vanishing on images that a linear head can separate.

    Args:
        model: Its head is one linear layer.
        batches: Images ``[batch, 3, height, width]`` and class ids ``[batch]``.
        weight_decay: Strength of the penalty on the weight, not on the bias.
        max_iterations: L-BFGS iterations at most.
        head: Name of the head; None finds it, see `sensitune.sites.find_head`.

    Returns:
        The mean cross-entropy it ends with.

    Raises:
        ModelError: If the head is not one linear layer.
    """
    linear = _linear_head(model, head)
    found = features_of(model, linear, batches)
    features, labels = found.features.to(linear.weight).detach(), found.labels.to(linear.weight.device)
    with torch.enable_grad():
        weight, bias = (each.detach().clone().requires_grad_(True) for each in (linear.weight, linear.bias))
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=max_iterations, line_search_fn="strong_wolfe")

        def objective() -> Tensor:
            optimizer.zero_grad()
            loss = functional.cross_entropy(features @ weight.T + bias, labels)
            total = loss + 0.5 * weight_decay * weight.square().sum()
            total.backward()
            return total

        optimizer.step(objective)
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
        return float(functional.cross_entropy(features @ weight.T + bias, labels))


def _linear_head(model: nn.Module, head: str | Sequence[str] | None) -> nn.Linear:
    names = find_head(model, head)
    module = model.get_submodule(names[0]) if len(names) == 1 else None
    if not isinstance(module, nn.Linear) or module.bias is None:
        raise ModelError(
            f"Only a head that is one linear layer with a bias can be fitted. {type(model).__name__} has "
            f"{', '.join(names) or 'none'}. Use the random head."
        )
    return module
