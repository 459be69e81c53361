"""Share the batches of a pass between processes, and bring the parts together.

Of W processes, process k takes batches k, k + W, k + 2W, ... Each batch is squared by the process that saw it and the
squares are added up, so the scores are those of one process over the same batches, up to the order of a sum. This is
not what averaging gradients between processes would give: that squares the mean over W batches. What a criterion makes
of its sums, it makes of these.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.utils.data.distributed import DistributedSampler

from sensitune.errors import DataError

Item = TypeVar("Item")


@dataclass(frozen=True)
class Processes:
    """The processes that share a pass.

    Attributes:
        rank: Number of this process.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def found(cls) -> Processes:
        """Those of torch.distributed's default group, which accelerate sets up too; this one alone if there is none."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    def share(self, items: Iterable[Item]) -> Iterator[tuple[int, Item]]:
        """This process's items, each with its number among all.

        Args:
            items: The same in every process.

        Yields:
            Every `count`-th, from `rank` on.
        """
        for index, item in enumerate(items):
            if index % self.count == self.rank:
                yield index, item

    def check_unshared(self, batches: object) -> None:
        """Refuse a loader that hands each process a share already: a share of a share would miss most of the data.

        Args:
            batches: What the pass is to read.

        Raises:
            DataError: If it is prepared by accelerate or samples for one process.
        """
        prepared = type(batches).__module__.startswith("accelerate.")
        if self.count > 1 and (prepared or isinstance(getattr(batches, "sampler", None), DistributedSampler)):
            raise DataError(
                f"`batches` must be the same in every process; this {type(batches).__name__} shares them between the "
                f"{self.count} processes itself. Give a loader that was not prepared, or `distributed=False`."
            )

    def gather(self, mine: Any) -> list[Any]:
        """What each process hands in, in the order of their ranks; also the place where they wait for one another."""
        if self.count == 1:
            return [mine]
        parts: list[Any] = [None] * self.count
        dist.all_gather_object(parts, mine)
        return parts

    def add_up(self, sums: Mapping[str, torch.Tensor]) -> None:
        """Replace each tensor, in place, by its sum over the processes, in float32 or better.

        Args:
            sums: The same names and shapes in every process.
        """
        if self.count == 1:
            return
        place = torch.device("cuda") if dist.get_backend() == "nccl" else None
        for mine in sums.values():
            total = mine.to(device=place, dtype=torch.promote_types(mine.dtype, torch.float32))
            dist.all_reduce(total)
            mine.copy_(total)
