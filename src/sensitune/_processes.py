"""The processes that work on one thing together: who they are, what each does of it, and how the parts come together.

They are those of torch.distributed, which torchrun and ``accelerate launch`` start. Whatever one of them does for all
(reading, deciding, writing) goes through `Processes.first`, so that nobody else touches a file and a failure is
everybody's; whatever all do goes through `Processes.together`.

Scores are shared batch by batch: of W processes, process k takes batches k, k + W, k + 2W, ... Each batch is squared by
the process that saw it and the squares are added up, so the scores are those of one process over the same batches, up
to the order of a sum. This is not what averaging gradients between processes would give: that squares the mean over W
batches. What a criterion makes of its sums, it makes of these.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.utils.data.distributed import DistributedSampler

from sensitune.errors import DataError, ProcessError

Item = TypeVar("Item")
Made = TypeVar("Made")

_ALONE: ContextVar[bool] = ContextVar("alone", default=False)
_STORE_PATIENCE = timedelta(seconds=5)


@dataclass(frozen=True)
class Processes:
    """The processes that work together.

    Attributes:
        rank: Number of this process.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def found(cls) -> Processes:
        """Those of torch.distributed's default group, or this one alone: also in what `first` has it do for all."""
        if dist.is_available() and dist.is_initialized() and not _ALONE.get():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def is_first(self) -> bool:
        """Whether this is the process that reads, writes and speaks for all."""
        return self.rank == 0

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

    def first(self, act: Callable[[], Made]) -> Made:
        """Have the first process do something for all.

        Args:
            act: What only the first process does, as if it were the only one.

        Returns:
            What it returns, in every process; it must survive pickling.

        Raises:
            Exception: What `act` raises, in every process.
        """
        if self.count == 1:
            return act()
        outcome: list[Any] = [None, None]
        failure: Exception | None = None
        if self.is_first:
            alone = _ALONE.set(True)
            try:
                outcome[0] = act()
            except Exception as error:
                failure = error
                outcome[1] = _portable(error)
            finally:
                _ALONE.reset(alone)
        dist.broadcast_object_list(outcome, src=0)
        if failure is None and outcome[1] is not None:
            failure = outcome[1]
        if failure is not None:
            raise failure
        made: Made = outcome[0]
        return made

    def together(self, act: Callable[[], Made]) -> Made:
        """Have every process do something that the others need; a failure of one is everybody's.

        Args:
            act: What each does, without waiting for the others inside.

        Returns:
            What it returns in this process.

        Raises:
            Exception: What `act` raises in the first process that fails.
        """
        if self.count == 1:
            return act()
        made: Made | None = None
        failure: Exception | None = None
        try:
            made = act()
        except Exception as error:
            failure = error
        failures = self.gather(None if failure is None else _portable(failure))
        worst = next((rank for rank, each in enumerate(failures) if each is not None), None)
        if worst is not None:
            raise failure if failure is not None and worst == self.rank else failures[worst]
        return made  # type: ignore[return-value]  # act's own None is one

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


def _portable(error: Exception) -> Exception:
    """The error, or its sentence, as something that another process can be sent."""
    with suppress(Exception):
        if type(pickle.loads(pickle.dumps(error))) is type(error):
            return error
    return ProcessError(f"{type(error).__name__}: {error}")


def launched_count() -> int:
    """How many processes the launcher of this one says that there are; 1 without one."""
    launched = "RANK" in os.environ and os.environ.get("WORLD_SIZE", "").isdecimal()
    return int(os.environ["WORLD_SIZE"]) if launched else 1


def is_others_end(error: BaseException) -> bool:
    """Whether an error only says that another process is gone, as the libraries that connect them put it."""
    if isinstance(error, (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError)):
        return True
    marks = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in marks)


class Voice:
    """One voice for all processes of a command: the first that has something to say at its end says it.

    The processes agree in the store in which they met: that of torchrun, which outlives them, or the first process's.
    """

    def __init__(self) -> None:
        self._commands = 0
        self._ours: bool | None = None

    def begin(self) -> None:
        """A command begins; the processes of one launch run the same ones."""
        self._commands += 1
        self._ours = None

    def is_ours(self) -> bool:
        """Whether this process is the one to speak; where nobody can be asked, it is."""
        if launched_count() == 1:
            return True
        if self._ours is None:
            self._ours = self._claim()
        return self._ours

    def _claim(self) -> bool:
        host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT", "")
        if host is None or not port.isdecimal():
            return True
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        try:
            store = dist.TCPStore(  # type: ignore[attr-defined]  # public, and missing in torch's list of exports
                host, int(port), None, False, _STORE_PATIENCE, wait_for_workers=False
            )
            return bool(store.add(f"sensitune/{attempt}/{self._commands}/spoken", 1) == 1)
        except (RuntimeError, ValueError):
            return True


VOICE = Voice()
"""The one of this process."""
