"""Say what ran out of memory, and what makes it need less."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sensitune.errors import MemoryLimitError


@contextmanager
def naming_stage(stage: str, lower: str) -> Iterator[None]:
    """Name the stage whose memory is not enough.

    Args:
        stage: What runs inside, as it reads after "There is not enough memory for".
        lower: What makes it need less, a sentence.

    Yields:
        Nothing.

    Raises:
        MemoryLimitError: In the place of what Python, torch's allocators or CUDA say.
        Exception: Any other, as it is; a stage inside has named itself already.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, MemoryLimitError) or not _is_out_of_memory(error):
            raise
        raise MemoryLimitError(f"There is not enough memory for {stage}. {lower}") from error


def _is_out_of_memory(error: Exception) -> bool:
    # torch.OutOfMemoryError is CUDA's; torch's allocator of the CPU raises a plain RuntimeError.
    cuda = any(each.__name__ == "OutOfMemoryError" for each in type(error).__mro__)
    cpu = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return isinstance(error, MemoryError) or cuda or cpu
