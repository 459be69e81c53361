"""The recipe on `transformers.Trainer`: its loop, checkpoints and random states; our loss, groups, rates and files."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed
from transformers.utils import logging

from sensitune._files import naming_failure
from sensitune._processes import Processes
from sensitune.errors import NonFiniteError
from sensitune.training._device import autocast, resolve_dtype
from sensitune.training._evaluate import measure
from sensitune.training._finite import WAY_OUT, check_finite_loss
from sensitune.training._groups import parameter_groups
from sensitune.training._loss import training_loss
from sensitune.training._modes import hold_frozen_parts, moves_statistics
from sensitune.training._reading import Reading
from sensitune.training._recipe import Recipe
from sensitune.training._schedule import learning_rate_at
from sensitune.training._sharding import gathered_optimizer, is_sharded, load_optimizer, shard
from sensitune.training._shares import Shares, training_loader
from sensitune.training._weights import load_weights, save_weights


class RecipeTrainer(Trainer):
    """A `transformers.Trainer` that follows a `Recipe` and saves only what trains."""

    def __init__(
        self,
        model: nn.Module,
        *,
        recipe: Recipe,
        reading: Reading,
        checkpoints: Path,
        device: torch.device,
        num_workers: int,
        seed: int,
        callbacks: list[Any],
        sharded: bool = False,
    ) -> None:
        self.recipe = recipe
        self.tuned = model
        self.reading = reading
        self.checkpoints = checkpoints
        super().__init__(
            model=reading.module,
            args=_arguments(
                recipe,
                checkpoints,
                device,
                0 if reading.of_features else num_workers,
                seed,
                validate="validation" in reading.splits,
                statistics_move=moves_statistics(reading.module),
            ),
            train_dataset=reading.splits["train"],
            eval_dataset=reading.splits.get("validation"),
            callbacks=callbacks,
        )
        self.remove_callback(PrinterCallback)
        if sharded:
            shard(reading.module, device)
            # Has it leave the model as it is, with its own reduction of gradients, where it would wrap it in DDP.
            self.is_distributed_loading_by_transformers = True
            self.place_model_on_device = False
        self.shares = Shares(len(reading.splits["train"]), recipe.batch_size, Processes.found())
        self.steps_per_epoch = len(self.shares)
        if not self.shares.processes.is_first:
            set_seed(seed + self.shares.processes.rank)  # for masks of its own; the order of the images has its seed

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The training split, or this process's share of it."""
        if self.shares.processes.count == 1:
            return super().get_train_dataloader()
        return training_loader(
            self.reading.splits["train"],
            self.shares,
            seed=self.args.seed,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The recipe's loss; a loss that is not finite ends the run before it reaches the weights."""
        # Of several processes each has the loss of its share, weighted so that their mean is that of the batch.
        hold_frozen_parts(model, self.reading.head)
        with autocast(self.args.device, resolve_dtype(self.recipe.precision, self.args.device)):
            loss, logits = training_loss(model, inputs["pixel_values"], inputs["labels"], self.recipe)
        whole = loss.detach()
        if self.shares.processes.count > 1:
            loss = loss * self.shares.weight(self.state.global_step % self.steps_per_epoch)
            whole = loss.detach().clone()
            dist.all_reduce(whole)
            whole /= self.shares.processes.count
        if not torch.isfinite(whole):
            raise NonFiniteError(self._describe_bad_loss(whole.item()))
        return (loss, {"logits": logits}) if return_outputs else loss

    def _describe_bad_loss(self, loss: float) -> str:
        step = self.state.global_step + 1
        epoch = self.state.global_step // self.steps_per_epoch + 1
        return f"The loss must stay finite. Got {loss} in step {step} of epoch {epoch}. {WAY_OUT}"

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW over the recipe's groups."""
        if self.optimizer is None:
            groups = parameter_groups(
                self.tuned,
                weight_decay=self.recipe.weight_decay,
                learning_rate=self.recipe.learning_rate,
                in_place_rate=self.recipe.in_place_rate,
            )
            self.optimizer = torch.optim.AdamW(groups, lr=self.recipe.learning_rate)
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The recipe's learning rate, step by step."""
        if self.lr_scheduler is None:
            followed = optimizer or self.create_optimizer()
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(followed, self._relative_rate)
        return self.lr_scheduler

    def _relative_rate(self, step: int) -> float:
        rate = learning_rate_at(step, steps_per_epoch=self.steps_per_epoch, recipe=self.recipe)
        return rate / self.recipe.learning_rate

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Accuracy and loss by `sensitune.training.evaluate`, so that a number means the same wherever it is taken.

        Args:
            eval_dataset: Prepared images; None is the validation split.
            ignore_keys: Not used.
            metric_key_prefix: What the names of the metrics start with.

        Returns:
            The metrics by name.

        Raises:
            NonFiniteError: If the loss is not finite: such weights give no answers.
        """
        found = measure(
            self.reading.module,
            self.eval_dataset if eval_dataset is None else eval_dataset,
            batch_size=self.recipe.batch_size,
            device=self.args.device,
            precision=self.recipe.precision,
            num_workers=self.args.dataloader_num_workers,
        )
        epoch = self.state.global_step // self.steps_per_epoch
        check_finite_loss("validation", found.loss, f"after epoch {epoch}")
        metrics = {f"{metric_key_prefix}_accuracy": found.accuracy, f"{metric_key_prefix}_loss": found.loss}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        save_weights(self.tuned, output_dir or self.checkpoints)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_weights(self.tuned, resume_from_checkpoint)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not is_sharded(self.reading.module):
            super()._save_optimizer_and_scheduler(output_dir)
            return
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        whole = gathered_optimizer(self.optimizer)
        if self.args.should_save:
            torch.save(whole, Path(output_dir) / "optimizer.pt")
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not is_sharded(self.reading.module):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        optimizer, scheduler = (
            torch.load(Path(checkpoint) / name, map_location="cpu", weights_only=True)
            for name in ("optimizer.pt", "scheduler.pt")
        )
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        load_optimizer(self.optimizer, optimizer)
        self.lr_scheduler.load_state_dict(scheduler)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        checkpoint = self.checkpoints / f"checkpoint-{self.state.global_step}"
        try:
            with naming_failure(checkpoint, whole="The one before it is whole: the same command goes on from there."):
                super()._save_checkpoint(model, trial)
        except BaseException:
            if self.args.should_save:
                shutil.rmtree(checkpoint, ignore_errors=True)
            raise


@contextmanager
def restored_verbosity() -> Iterator[None]:
    """Put transformers' log level back, which every trainer sets for the whole process; no news of torch's own."""
    level = logging.get_verbosity()
    try:
        with warnings.catch_warnings():
            # accelerate has no other name for it yet (1.15).
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            # The strides of a token's axes of size 1, which matter to nobody.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
            yield
    finally:
        logging.set_verbosity(level)


def _arguments(
    recipe: Recipe,
    checkpoints: Path,
    device: torch.device,
    num_workers: int,
    seed: int,
    *,
    validate: bool,
    statistics_move: bool,
) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=recipe.batch_size,
        max_grad_norm=recipe.clip_grad_norm or 0.0,
        seed=seed,
        data_seed=seed,
        use_cpu=device.type == "cpu",
        dataloader_num_workers=num_workers,
        dataloader_pin_memory=device.type == "cuda",
        eval_strategy="epoch" if validate else "no",
        eval_delay=0 if recipe.validate == "epochs" else recipe.epochs,
        save_strategy="epoch",
        save_total_limit=1,
        logging_strategy="epoch",
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        remove_unused_columns=False,
        label_names=["labels"],
        # Every parameter that trains has a gradient in every step: see `used_parameters_alone`.
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=statistics_move,
    )
    # Several GPUs in one process would mean torch's DataParallel, which PEFT models do not survive.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
