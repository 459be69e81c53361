"""How several processes share the batches of a split: together they see those of one process, in its order.

Every batch is cut into as many parts as there are processes, as equal as they can be, and each takes that of its rank.
What is averaged over the processes (gradients, losses) is a mean over the batch if each part weighs

    weight = (images in the part) · (processes) / (images in the batch),

so the last batch of an epoch, which may be smaller, and a batch that cannot be cut evenly are right too. Where a batch
has fewer images than there are processes, some compute on an image of weight 0: every process must take every step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from accelerate.data_loader import SeedableRandomSampler
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, default_collate
from torch.utils.data import Dataset as TorchDataset

from sensitune._processes import Processes
from sensitune.errors import DataError


@dataclass(frozen=True)
class Shares:
    """The parts of one process.

    Attributes:
        num_images: Size of the split.
        batch_size: Images of a whole batch.
        processes: Those that share it.
    """

    num_images: int
    batch_size: int
    processes: Processes

    def __len__(self) -> int:
        return -(-self.num_images // self.batch_size)

    def part(self, batch: int) -> tuple[int, int]:
        """Where this process's part of a batch, by its number, begins and ends within it."""
        size = min(self.batch_size, self.num_images - batch * self.batch_size)
        rank, count = self.processes.rank, self.processes.count
        return size * rank // count, size * (rank + 1) // count

    def weight(self, batch: int) -> float:
        """What the mean over this process's part of a batch, by its number, counts in the mean over the processes."""
        start, stop = self.part(batch)
        size = min(self.batch_size, self.num_images - batch * self.batch_size)
        return (stop - start) * self.processes.count / size


class SharedBatches(BatchSampler):
    """The indices of this process's part of every batch, at least one each.

    Args:
        sampler: The order of the whole split, the same in every process.
        shares: The parts.
    """

    def __init__(self, sampler: SequentialSampler | SeedableRandomSampler, shares: Shares) -> None:
        super().__init__(sampler, shares.batch_size, drop_last=False)
        self.shares = shares

    def __iter__(self) -> Iterator[list[int]]:
        for number, batch in enumerate(super().__iter__()):
            start, stop = self.shares.part(number)
            yield batch[start:stop] or batch[:1]


class SharedLoader(DataLoader[dict[str, Tensor]]):
    """A loader of this process's parts of a training split, in the order in which one process shuffles it."""

    def set_epoch(self, epoch: int) -> None:
        """Shuffle for an epoch, counted from 0.

        Args:
            epoch: The epoch.
        """
        order = self.batch_sampler.sampler if isinstance(self.batch_sampler, SharedBatches) else None
        assert isinstance(order, SeedableRandomSampler)
        order.set_epoch(epoch)


def training_loader(
    images: TorchDataset[dict[str, Tensor]], shares: Shares, *, seed: int, num_workers: int, pin_memory: bool
) -> SharedLoader:
    """The parts of a training split that a process trains on.

    Args:
        images: The split.
        shares: The parts.
        seed: Of the order, with the epoch.
        num_workers: Processes that read images.
        pin_memory: Whether batches are to be copied to a GPU.

    Returns:
        The loader.
    """
    sampler = SeedableRandomSampler(images, data_seed=seed)
    return SharedLoader(
        images,
        batch_sampler=SharedBatches(sampler, shares),
        collate_fn=default_collate,
        num_workers=num_workers,
        pin_memory=pin_memory,
    )


def check_enough_images(num_images: int) -> None:
    """Refuse more processes than there are images to train on.

    Args:
        num_images: Of the training split.

    Raises:
        DataError: If a process would have none.
    """
    count = Processes.found().count
    if num_images < count:
        raise DataError(
            f"{count} processes cannot share {num_images} training images: some would have nothing to do. Start at "
            f"most {num_images}."
        )
