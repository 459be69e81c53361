r"""Adapter+ as a further baseline of a sweep: the same data, backbone, head, recipe and choice of the learning rate.

    TIMM_FUSED_ATTN=0 python benchmarks/accuracy/adapter_plus.py benchmarks/accuracy/cpu.yaml --rank 7 \
      --output runs/accuracy/adapter_plus --workers 2

After every transformer block, its skip connections included, comes

    x + scale * (W_up gelu(W_down x + b_down) + b_up)    x [batch, tokens, d], W_down [r, d], W_up [d, r], scale [d]

with ``scale`` 1 at the start, weights from a normal distribution of standard deviation 0.01 cut at two of them, and
biases 0. N blocks cost N (2 d r + r + 2 d) parameters: 36,906 for 6 blocks, d = 384 and rank 7, within 0.2 % of the
suite's 36,864. No layer norm and no dropout in it, no class token trained. Deviation from the published setting: the
adapter's stochastic depth is the recipe's ``drop_path``, here as in the other methods, not always 0.1.

Runs lie in ``runs/TASK/adapter/SETTING/seedN`` of the output folder. Their ``run.yaml`` says ``method: head`` and the
rank: it is the sweep's method ``head`` whose settings they take. One that is finished is not repeated.
``results.json`` is for the option ``--also`` of `report.py`.

Paper: Steitz and Roth, *Adapters Strike Back*, CVPR 2024; position, initialisation and the absence of a norm also as
in its code (github.com/visinf/adapter_plus).
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional

from sensitune.backbones import Backbone
from sensitune.errors import ConfigError, NonFiniteError, SensituneError
from sensitune.runs import RecordedEvaluation, Run
from sensitune.sites import find_head, outline_model
from sensitune.sweeps import EngineSettings, Job, JobOutcome, SweepConfig, planned_runs, run_sweep
from sensitune.training import AdapterManifest, AdapterOrigin, evaluate, load_weights, read_result, train

LABEL = "Adapter+"
INIT_STD = 0.01


class AdapterPlus(nn.Module):
    """The adapter of one block, with the skip around it.

    Args:
        dim: Width d of the tokens.
        rank: Width r between the two layers.
        drop_path: Probability of leaving it out for a picture while training.
    """

    def __init__(self, dim: int, rank: int, *, drop_path: float = 0.0) -> None:
        super().__init__()
        self.down = nn.Linear(dim, rank)
        self.up = nn.Linear(rank, dim)
        self.scale = nn.Parameter(torch.ones(dim))
        self.drop_path = DropPath(drop_path)
        for layer in (self.down, self.up):
            nn.init.trunc_normal_(layer.weight, std=INIT_STD, a=-2 * INIT_STD, b=2 * INIT_STD)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, tokens, d]`` -> the same shape."""
        return x + self.drop_path(self.scale * self.up(functional.gelu(self.down(x))))


def add_adapters(model: nn.Module, *, rank: int, drop_path: float = 0.0) -> list[AdapterPlus]:
    """Put an adapter after every block of one of timm's vision transformers; only they and the head are left to train.

    Args:
        model: The model; changed in place.
        rank: Width of the adapters.
        drop_path: Their stochastic depth.

    Returns:
        The adapters, in the order of the blocks.
    """
    head = find_head(model)
    model.requires_grad_(False)
    for name in head:
        model.get_submodule(name).requires_grad_(True)
    vit: Any = model
    adapters = [AdapterPlus(vit.embed_dim, rank, drop_path=drop_path) for _ in vit.blocks]
    for index, adapter in enumerate(adapters):
        vit.blocks[index] = nn.Sequential(vit.blocks[index], adapter)
    return adapters


def sweep_of(sweep: SweepConfig, *, rank: int) -> SweepConfig:
    """The sweep with Adapter+ as its only method.

    Args:
        sweep: Tasks, grid, seeds, and a method ``head``, whose run settings are taken.
        rank: Width of the adapters.

    Returns:
        A new sweep.

    Raises:
        ConfigError: If the sweep has no method ``head``.
    """
    carrier = next((each for each in sweep.methods if sweep.method_config(each).allocation.method == "head"), None)
    if carrier is None:
        raise ConfigError(f"{LABEL} takes the run settings of the sweep's method `head`, which has none. Add it.")
    methods = sweep.with_settings({"allocation.rank": rank}).methods
    return replace(sweep, methods={LABEL: methods[carrier]})


def run_job(job: Job) -> JobOutcome:
    """Do what is left of a run, as the sweep's own function of that name does for its methods.

    Args:
        job: The run.

    Returns:
        Its outcome; a mistake in its settings or data is an outcome, not an exception.
    """
    started = time.perf_counter()
    error = None
    try:
        _train_and_test(job)
    except (SensituneError, OSError) as found:
        error = str(found)
    return JobOutcome(job.key, error, time.perf_counter() - started)


def _train_and_test(job: Job) -> None:
    run = Run.open(job.folder, job.config)
    config, data, transform = run.config, run.ingredients.data, run.ingredients.transform
    backbone, adapters = _build(run)
    adapter_params = sum(each.numel() for adapter in adapters for each in adapter.parameters())
    trained_params = sum(each.numel() for each in backbone.model.parameters() if each.requires_grad)
    origin = AdapterOrigin.of(
        data,
        method=LABEL,
        seed=config.seed,
        trainable_params=adapter_params,
        head_params=trained_params - adapter_params,
        backbone_params=outline_model(run.ingredients.backbone.model).backbone_params,
    )
    if read_result(job.folder) is None:
        try:
            train(
                backbone.model,
                data,
                config.recipe,
                job.folder,
                transform=transform,
                manifest=AdapterManifest(backbone.spec, backbone.weights_hash, data.class_names, transform, origin),
                device=config.compute.device,
                num_workers=config.compute.num_workers,
                seed=config.seed,
            )
        except NonFiniteError as error:
            job.note_divergence(error)
            raise
    if job.test:
        load_weights(backbone.model, run.folder.training.adapter)
        _test(run, backbone)


def _build(run: Run) -> tuple[Backbone, list[AdapterPlus]]:
    """The sweep's backbone and head, adapters added; drawn from the run's seed, like the other methods' modules."""
    config = run.config
    backbone = run.ingredients.fresh_backbone(drop_path=config.recipe.drop_path)
    torch.manual_seed(config.seed)
    return backbone, add_adapters(backbone.model, rank=config.allocation.rank, drop_path=config.recipe.drop_path)


def _test(run: Run, backbone: Backbone) -> None:
    """Test the last epoch's weights."""
    config = run.config
    found = evaluate(
        backbone.model,
        run.ingredients.all_data.dataset["test"],
        run.ingredients.transform,
        batch_size=config.recipe.batch_size,
        device=config.compute.device,
        precision=config.recipe.precision,
        num_workers=config.compute.num_workers,
    )
    run.folder.write_evaluation(RecordedEvaluation.of(found, split="test", weights="last"))


def main() -> None:
    """Run what is left, or say how much that is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--rank", type=int, default=7)
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs and of results.json")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    parser.add_argument("--plan", action="store_true", help="say how many runs are left, and run nothing")
    arguments = parser.parse_args()
    sweep = sweep_of(SweepConfig.from_yaml(arguments.config), rank=arguments.rank)
    if arguments.plan:
        for purpose, left, total in planned_runs(sweep, arguments.output):
            print(f"to {purpose}: {left} of {total} runs left")
        return
    engine = EngineSettings(workers=arguments.workers)
    result = run_sweep(sweep, arguments.output, engine=engine, on_done=_tell, run=run_job)
    print(f"{len(result.runs)} of {result.num_runs} runs tested")
    if result.failed:
        raise SystemExit("\n".join(f"without a result: {key}: {why}" for key, why in result.failed.items()))


def _tell(outcome: JobOutcome, ended: int, total: int) -> None:
    said = outcome.error or "done"
    print(f"[{ended}/{total}] {outcome.key}: {said} ({outcome.seconds:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
