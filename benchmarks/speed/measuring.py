"""What the benchmarks share: their options, clocks, paired timing, memory, and the header of a result."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import nn

Clock: TypeAlias = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}


def parser(description: str | None, *, repeats: int) -> argparse.ArgumentParser:
    """The options that every benchmark has. `--clock cpu` counts CPU time: other jobs on the machine hardly matter."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--repeats", type=int, default=repeats)
    made.add_argument("--threads", type=int, default=torch.get_num_threads())
    made.add_argument("--clock", choices=list(CLOCKS), default="wall")
    made.add_argument("--output", type=Path, default=None, help="where to write the JSON")
    return made


def prepare(arguments: argparse.Namespace) -> Clock:
    """Set the threads; return the clock."""
    torch.set_num_threads(arguments.threads)
    return CLOCKS[arguments.clock]


def publish(arguments: argparse.Namespace, **content: Any) -> None:
    """Print a report with command, versions, hardware and date, and write it if asked to."""
    report = {
        "command": " ".join(["python", *_without_output(sys.argv)]),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "peft", "timm", "sensitune")},
        "hardware": hardware(arguments.threads),
        "clock": arguments.clock,
        "load_average": round(os.getloadavg()[0], 1),
        "date": datetime.now(tz=UTC).date().isoformat(),
        **content,
    }
    text = json.dumps(report, indent=1)
    print(text)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(text + "\n")


def _without_output(words: Sequence[str]) -> list[str]:
    """The command line less the place of its result."""
    place = words.index("--output") if "--output" in words else len(words)
    return [*words[:place], *words[place + 2 :]]


def hardware(threads: int) -> str:
    """The processor as the kernel names it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {threads} threads of {os.cpu_count()} cores"


def timed(call: Callable[[], object], clock: Clock) -> float:
    """Seconds of one call."""
    start = clock()
    call()
    return clock() - start


def interleaved(calls: Mapping[str, Callable[[], object]], repeats: int, clock: Clock) -> dict[str, list[float]]:
    """Seconds of each call, taking turns, so that neighbours in time compare; a first round warms up.

    Args:
        calls: What to measure, by name.
        repeats: How many rounds count.
        clock: One of `CLOCKS`.

    Returns:
        Name -> seconds, a value for each round.
    """
    rounds = [{name: timed(call, clock) for name, call in calls.items()} for _ in range(repeats + 1)][1:]
    return {name: [one[name] for one in rounds] for name in calls}


def spread(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """Median and range."""
    found = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, digits) for name, value in found.items()}


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Spread of the ratios of neighbouring runs."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])


def kept_for_backward(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> int:
    """Bytes that autograd keeps for backward, each storage once, parameters not counted.

    Read off the graph: saved-tensor hooks would do, but SPT's layers keep more while hooks are on.

    Args:
        model: The model.
        images: A batch.
        labels: Its classes.

    Returns:
        The number of bytes after one forward pass.
    """
    pointers = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, int] = {}
    model.train()
    loss = F.cross_entropy(model(images), labels)
    for tensor in saved_tensors(loss.grad_fn):
        parts = [tensor._indices(), tensor._values()] if tensor.is_sparse else [tensor]  # SHiRA saves sparse tensors
        for storage in (part.untyped_storage() for part in parts):
            if storage.data_ptr() not in pointers:
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def saved_tensors(root: Any) -> Iterator[torch.Tensor]:
    """Every tensor that the nodes of a graph have saved."""
    waiting, seen = [root], {root}
    while waiting:
        node = waiting.pop()
        names = [name for name in dir(node) if name.startswith("_saved_") or name == "saved_tensors"]
        for value in (getattr(node, name) for name in names):
            values = value if isinstance(value, (list, tuple)) else [value]
            yield from (one for one in values if isinstance(one, torch.Tensor))
        found = {following for following, _ in node.next_functions if following is not None} - seen
        seen |= found
        waiting.extend(found)


def peak_resident_mib() -> float:
    """The most memory this process has had so far, mapped files included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def resident_mib() -> float:
    """The memory this process has now; Linux only."""
    return _status("VmRSS")


def forget_peak() -> None:
    """Let `peak_since_mib` start from now; Linux only."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_since_mib() -> float:
    """The most memory this process has had since `forget_peak`."""
    return _status("VmHWM")


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024
