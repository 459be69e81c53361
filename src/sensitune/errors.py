"""The error family: every mistake a user can make has a class here and a sentence that says the way out.

All of them are `SensituneError`, and each is also the built-in error a caller would expect, so that
``except ValueError`` keeps working. A message names the thing, the rule, the value it got and the way out.
"""

from __future__ import annotations


class SensituneError(Exception):
    """Base class of every error that Sensitune raises on purpose."""


def describe(error: Exception) -> str:
    """What to tell a user of an error: its own sentence, or of the system's the file and the reason.

    Args:
        error: One of ours, or the system's.

    Returns:
        The sentence.
    """
    if isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
        return f"{error.filename}: {error.strerror}."
    return str(error)


class ArgumentError(SensituneError, ValueError):
    """An argument has a value it may not have, or two arguments contradict each other."""


class BudgetError(ArgumentError):
    """A budget that cannot be met: below what is always trained, or above what can be used."""


class ModelError(SensituneError, ValueError):
    """A model that cannot be tuned as asked, with the module or parameter that stands in the way."""


class AllocationMismatchError(SensituneError, ValueError):
    """An allocation, a sensitivity or an adapter that was made for another model or other shapes."""


class AdapterFileError(SensituneError, ValueError):
    """An adapter, sensitivity or allocation file that is damaged or incomplete."""


class NonFiniteError(SensituneError, ArithmeticError):
    """A loss, gradient or score that is not a finite number."""


class MergeError(SensituneError, ValueError):
    """A module that has no merged form, such as a non-linear Adapter, or merged values that are not finite."""


class ExportError(SensituneError, ValueError):
    """An adapter, or a part of one, of which no plain LoRA does the same."""


class CheckpointError(SensituneError, ValueError):
    """A checkpoint that is truncated, unsafe to read, or made for another architecture."""


class DataError(SensituneError, ValueError):
    """A dataset, folder or image that cannot be used as it is."""


class ConfigError(SensituneError, ValueError):
    """A configuration file or run setting that is unknown or of the wrong type."""


class RunFolderError(SensituneError, ValueError):
    """A run folder that belongs to another configuration, or lacks what a stage needs."""


class OutputError(SensituneError, OSError):
    """A file or folder that could not be written: a full disk, a folder that may only be read, a name too long."""


class MemoryLimitError(SensituneError, MemoryError):
    """A stage that needs more memory than there is, and what makes it need less."""


class SweepError(SensituneError, RuntimeError):
    """Runs of a sweep that failed while the others went on."""


class ProcessError(SensituneError, RuntimeError):
    """A process that failed, or is gone, while others work with it on one run."""


class MissingPackageError(SensituneError, ImportError):
    """A package of an extra that is not installed."""


class VersionError(SensituneError, ImportError):
    """A package that is older than what this one was tested with."""
