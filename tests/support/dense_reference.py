"""The slow, obvious reference of a tuned model: a plain one with every change added densely into its weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import nn

from sensitune.allocation import Allocation
from sensitune.sites import Site


def dense_weights(
    base: nn.Module, values: Mapping[str, Mapping[str, torch.Tensor]], allocation: Allocation
) -> dict[str, torch.Tensor]:
    """Every parameter of `base` with its changes added densely, differentiable in `values` (site id -> role -> value).

    Adapters are left out: no weight has their effect.
    """
    weights = {name: parameter.detach() for name, parameter in base.named_parameters()}
    sites = {site.id: site for site in allocation.outline.sites}
    for site_id, roles in values.items():
        site = sites.get(site_id)
        name = site_id if site is None else site.parameter
        if "whole" in roles:
            change = roles["whole"]
        elif site is not None and "sparse" in roles:
            flat = torch.zeros(site.numel, dtype=roles["sparse"].dtype)
            change = flat.index_put((allocation.sparse[site_id],), roles["sparse"]).view(site.shape)
        elif site is not None and allocation.structured_type == "lora":
            change = roles["up"] @ roles["down"].flatten(1)
            change = change.t() if site.transposed else change.view(site.shape)
        else:
            continue
        weights[name] = weights[name] + (change if site is None else _padded(change, site, weights[name]))
    return weights


def _padded(change: torch.Tensor, site: Site, weight: torch.Tensor) -> torch.Tensor:
    """A slice's change as one of the whole parameter."""
    if site.rows is None:
        return change
    last = site.transposed or weight.dim() == 1
    rows = (site.rows[0], weight.shape[-1 if last else 0] - site.rows[1])
    return F.pad(change, rows if last else (0, 0) * (weight.dim() - 1) + rows)


def write_dense(plain: nn.Module, tuned: PeftModel, allocation: Allocation) -> None:
    """Put the tuned model's changes into the weights of a plain one."""
    with torch.no_grad():
        for name, weight in dense_weights(plain, tuned.base_model.site_parameters(), allocation).items():
            plain.get_parameter(name).copy_(weight)


def assert_gradients_follow(tuned: PeftModel, plain: nn.Module, allocation: Allocation) -> None:
    """Every trained value's gradient is what the chain rule makes of the plain model's dense gradient."""
    sites = {site.id: site for site in allocation.outline.sites}
    found = tuned.base_model.site_parameters()
    assert found.keys() == {*allocation.structured, *allocation.vectors, *allocation.sparse, *allocation.always_trained}
    for site_id, roles in found.items():
        site = sites.get(site_id)
        dense = plain.get_parameter(site_id if site is None else site.parameter).grad
        assert dense is not None, site_id
        dense = dense if site is None else site.of(dense)
        for role, expected in _chain(dense, roles, allocation, site_id).items():
            torch.testing.assert_close(roles[role].grad, expected, msg=lambda text, at=site_id: f"{at}: {text}")
    for name in allocation.head:
        copy = tuned.base_model.model.get_submodule(name).modules_to_save["default"]
        for own, parameter in copy.named_parameters():
            torch.testing.assert_close(parameter.grad, plain.get_submodule(name).get_parameter(own).grad)


def _chain(
    dense: torch.Tensor, roles: Mapping[str, torch.Tensor], allocation: Allocation, site_id: str
) -> dict[str, torch.Tensor]:
    if "whole" in roles:
        return {"whole": dense}
    if "sparse" in roles:
        return {"sparse": dense.flatten()[allocation.sparse[site_id]]}
    if allocation.structured_type != "lora":
        return {}
    oriented = dense.t() if allocation.site(site_id).transposed else dense.flatten(1)
    down, up = roles["down"].flatten(1), roles["up"]
    return {"up": oriented @ down.t(), "down": (up.t() @ oriented).view(roles["down"].shape)}
