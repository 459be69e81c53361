"""The pass: forward and backward over the batches, with the model borrowed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import nn

from sensitune._processes import Processes
from sensitune.errors import ArgumentError, DataError, ModelError, NonFiniteError
from sensitune.sensitivity._accumulator import Accumulator
from sensitune.sensitivity._batches import Batch, LossFn, batch_size_of, placed
from sensitune.sensitivity._checkpointing import keep_checkpointing
from sensitune.sensitivity._dropout import dropout_modules, masks_of
from sensitune.sensitivity._loss import default_loss
from sensitune.sensitivity._micro_batches import cut, find_way, shares, take, ways_to_count
from sensitune.sensitivity._progress import Progress, progress_reporter
from sensitune.sensitivity._state import borrowed
from sensitune.sites import stored_bytes_kept


@dataclass
class _Part:
    """What one process has done.

    Attributes:
        done: Number of the batch -> its size and loss.
        num_read: How many batches went by, the others' included.
        seen: Names of the parameters that had a gradient.
        failure: What stopped it.
    """

    done: dict[int, tuple[int | None, float]] = field(default_factory=dict)
    num_read: int = 0
    seen: set[str] = field(default_factory=set)
    failure: Exception | None = None

    def counted(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, counted on their way."""
        for batch in batches:
            self.num_read += 1
            yield batch


@dataclass(frozen=True)
class Pass:
    """One pass of a model over batches.

    Attributes:
        model: The model; given back as found.
        accumulator: Where the gradients go.
        loss_fn: The mean loss of a batch; None = `default_loss`.
        micro_batch_size: Samples per backward pass; None = whole batches.
        processes: Those that share the batches.
        dropout_seed: Of the masks of dropout and drop-path; None = both are off.
    """

    model: nn.Module
    accumulator: Accumulator
    loss_fn: LossFn | None
    micro_batch_size: int | None
    processes: Processes
    dropout_seed: int | None = None

    def run(self, batches: Iterable[Batch], num_batches: int | None, progress: Progress) -> dict[str, Any]:
        """Read the batches and fill the accumulator.

        Args:
            batches: What to read.
            num_batches: How many; None = all.
            progress: As in `estimate_sensitivity`.

        Returns:
            What the pass adds to the metadata.

        Raises:
            DataError: If there are no batches, or fewer than `num_batches`.
            ModelError: If dropout is asked for and the model has none.
        """
        self.processes.check_unshared(batches)
        length = _length(batches)
        if length is not None and 0 < length < (num_batches or 1):
            raise DataError(_too_few(length, num_batches))
        total = length if num_batches is None else num_batches
        with stored_bytes_kept(self.model), borrowed(self.model), progress_reporter(progress, total) as report:
            self._prepare()
            with self.accumulator.attached(), torch.enable_grad():
                mine = self._part(islice(batches, num_batches), report)
        sizes, losses = self._together(mine, num_batches)
        return {
            "num_batches": len(sizes),
            "num_samples": sum(size or 0 for size in sizes),
            "batch_sizes": sizes,
            "losses": losses,
            "micro_batch_size": self.micro_batch_size,
            "num_processes": self.processes.count,
            "dropout": self.dropout_seed is not None,
        } | ({} if self.dropout_seed is None else {"seed": self.dropout_seed})

    def _part(self, batches: Iterable[Batch], report: Callable[[int], None]) -> _Part:
        """Fold this process's batches. With others waiting, a failure is not raised before they know of it."""
        part = _Part()
        try:
            for index, batch in self.processes.share(part.counted(batches)):
                part.done[index] = self._one(batch, index)
                report(index + 1)
        except Exception as error:
            if self.processes.count == 1:
                raise
            part.failure = error
        part.seen = self.accumulator.seen
        return part

    def _together(self, mine: _Part, num_batches: int | None) -> tuple[list[int | None], list[float]]:
        """Sizes and losses of all batches in order; the accumulator then holds the sums of all processes."""
        parts = self.processes.gather(mine)
        failed = [part.failure for part in (mine, *parts) if part.failure is not None]
        if failed:
            raise failed[0]
        if len({part.num_read for part in parts}) > 1:
            read = ", ".join(str(part.num_read) for part in parts)
            raise DataError(f"`batches` must be the same in every process. The processes read {read} of them.")
        if not mine.num_read:
            raise DataError("`batches` is empty: there is nothing to estimate the sensitivity on.")
        if num_batches is not None and mine.num_read < num_batches:
            raise DataError(_too_few(mine.num_read, num_batches))
        for sums in self.accumulator.sums:
            self.processes.add_up(sums)
        self.accumulator.seen = set().union(*(part.seen for part in parts))
        done = {index: one for part in parts for index, one in part.done.items()}
        return [done[index][0] for index in sorted(done)], [done[index][1] for index in sorted(done)]

    def _prepare(self) -> None:
        """Eval mode, but for dropout if asked for, and no gradients but those that the accumulator asks for."""
        for module in self.model.modules():
            module.training = False
        for module in [] if self.dropout_seed is None else dropout_modules(self.model):
            module.training = True
        keep_checkpointing(self.model)
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)

    def _one(self, batch: Batch, index: int) -> tuple[int | None, float]:
        """Size and loss of a batch, once its gradients are folded."""
        dtype = next((each.dtype for each in self.model.parameters() if each.is_floating_point()), None)
        dtype = dtype if self.loss_fn is None else None
        # accelerate takes the batch on to the devices that an offloaded model runs on.
        device = next((each.device for each in self.model.parameters() if not each.is_meta), torch.device("cpu"))
        masks = nullcontext() if self.dropout_seed is None else masks_of(self.dropout_seed, index, self.model)
        with masks:
            loss = self._batch(placed(batch, device, dtype), index)
        return batch_size_of(batch), loss

    def _batch(self, batch: Batch, index: int) -> float:
        """Fold the gradient of the whole batch's mean loss, however many backward passes it takes."""
        self.accumulator.second = index % 2 == 1
        pieces = cut(batch, self.micro_batch_size)
        ways = ways_to_count(self.model, batch)
        way = ways[0]
        if way is not None and not way.any():
            raise DataError(f"Batch {index} (the first is 0) holds no labelled sample. Leave it out.")
        if len(pieces) > 1:
            dtypes = (parameter.dtype for parameter in self.model.parameters() if parameter.is_floating_point())
            precision = next(dtypes, torch.float32)
            way = find_way(ways, pieces, lambda rows: self._value(take(batch, rows)), precision)
        # A piece that gives no term to the mean has a mean over nothing.
        counted = [(rows, share) for rows, share in zip(pieces, shares(way, pieces), strict=True) if share]
        mean_loss = 0.0
        for number, (rows, share) in enumerate(counted, start=1):
            self.accumulator.start_piece(complete=number == len(counted))
            loss = self._loss(take(batch, rows) if len(pieces) > 1 else batch, index)
            mean_loss += loss.item() * share
            with self.accumulator.arriving():
                (loss * share).backward()
        self.accumulator.finish_batch(index)
        return mean_loss

    @torch.no_grad()
    def _value(self, batch: Batch) -> torch.Tensor:
        """The loss without its graph and without dropout, NaN and all."""
        dropping = [] if self.dropout_seed is None else dropout_modules(self.model)
        for module in dropping:
            module.training = False
        value = self._scalar(batch)
        for module in dropping:
            module.training = True
        return value

    def _loss(self, batch: Batch, index: int) -> torch.Tensor:
        loss = self._scalar(batch)
        if not math.isfinite(loss.item()):
            raise NonFiniteError(
                f"The loss of batch {index} (the first is 0) is {loss.item()}. "
                "Look at the batch's inputs, or run the model in float32."
            )
        if not loss.requires_grad:
            raise ModelError(
                f"The loss of batch {index} (the first is 0) depends on no ranked parameter. "
                "Look for `detach()` or `no_grad()` between the model and its loss."
            )
        return loss

    def _scalar(self, batch: Batch) -> torch.Tensor:
        loss = (self.loss_fn or default_loss)(self.model, batch)
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
            raise ArgumentError(f"The loss of a batch must be a scalar tensor. Got {got}.")
        return loss


def _length(batches: Iterable[Batch]) -> int | None:
    try:
        return len(batches)  # type: ignore[arg-type]
    except TypeError:  # an iterator, or a loader over one
        return None


def _too_few(found: int, num_batches: int | None) -> str:
    return f"`batches` ends after {found}; `num_batches` asks for {num_batches}. Lower `num_batches` or give more data."
