"""What two allocations share."""

from __future__ import annotations

from collections.abc import Callable

import torch

from sensitune.allocation import Allocation, overlap
from sensitune.sites import ModelOutline


def _sets(allocation: Allocation) -> tuple[set[str], set[tuple[str, int]]]:
    """The modules and the values of an allocation, one by one."""
    whole = {(name, index) for name in allocation.vectors for index in range(allocation.site(name).numel)}
    single = {(name, int(index)) for name, indices in allocation.sparse.items() for index in indices}
    return set(allocation.structured), whole | single


def test_modules_and_values_are_counted_one_by_one(make_outline: Callable[..., ModelOutline]) -> None:
    outline = make_outline([(4, 4), (4, 4), (4, 4), (5,), (5,)])
    first, second, third, vector, other = (site.id for site in outline.sites)
    one = Allocation(
        outline, {first: 1, second: 1}, (vector,), {third: torch.tensor([0, 3, 9])}, structured_type="lora"
    )
    two = Allocation(
        outline,
        {second: 2},
        (other,),
        {third: torch.tensor([3, 9, 11]), vector: torch.tensor([1, 2])},
        structured_type="lora",
    )
    found = overlap(one, two)
    (modules, values), (other_modules, other_values) = _sets(one), _sets(two)
    assert found.modules == len(modules & other_modules) == 1
    assert found.modules_alone == (len(modules - other_modules), len(other_modules - modules)) == (1, 0)
    assert found.values == len(values & other_values) == 4
    assert found.values_alone == (len(values - other_values), len(other_values - values)) == (4, 6)
