"""The groups of a run's settings that belong to no other room: sensitivity, allocation, compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from sensitune._schema import AtLeastOne, PositiveInt, Rule, Share, check
from sensitune.runs.methods import METHODS, read_peft
from sensitune.sensitivity import CriterionName

MethodName = Annotated[str, Rule(f"one of {', '.join(METHODS)}", METHODS.__contains__)]
LoraStart = Literal["random", "gradient"]
DeviceName = Literal["auto", "cpu", "cuda", "mps"]


@dataclass(frozen=True)
class SensitivitySettings:
    """How the sensitivity is estimated. The defaults are the published ones (SPT, section 4.1)."""

    num_batches: PositiveInt = 16
    """Batches of the training split, in its order, without augmentation; fewer where the split ends earlier."""
    batch_size: PositiveInt = 32
    """Images in a batch; the score sums the squared gradients of the batches' mean losses."""
    criterion: CriterionName = "squared_gradient"
    """What makes a parameter sensitive; squared_gradient is the published one. A method may have its own."""
    micro_batch_size: PositiveInt | None = None
    """Images that go through the model at once; lower it where memory is short, the result stays the same."""
    drop_path: Share = 0.0
    """Stochastic depth while scoring; the published code leaves it at 0.1, which makes the scores random."""
    split_fused: bool = True
    """Whether q, k and v of a fused projection count as three matrices; lora-stored takes them as the one they are."""
    keep_gradients: bool = False
    """Keep the sum of the gradients beside the scores; what looks at their directions switches it on itself."""

    keep_halves: bool = False
    """Keep the scores of each half of the batches too, so that `sensitune run` says how many modules either half alone
    would have placed; costs the memory and the file of one more score per parameter."""

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class AllocationSettings:
    """What is tuned, and how many parameters it may take."""

    method: MethodName = "spt-lora"
    """What is tuned: by sensitivity (spt-lora, spt-adapter, sparse), everywhere (lora, adapter, vectors), everywhere as
    PEFT places it (lora-stored: a fused q, k, v is one matrix), as any other PEFT configuration says (peft), and so
    on."""
    budget: int | str | None = None
    """Trainable parameters, the head not counted: 400_000, 0.4M, or 0.5% of the backbone (the default)."""
    tau: PositiveInt | None = None
    """Instead of a budget: how many of the most sensitive parameters are selected."""
    rank: PositiveInt = 8
    """Rank of the LoRA or Adapter modules."""
    alpha: AtLeastOne = 10.0
    """A matrix gets a module if it holds at least 1/alpha of the module's size in selected parameters."""
    beta: AtLeastOne = 5.0
    """A vector is tuned whole if at least 1/beta of it is selected."""
    lora_start: LoraStart = "random"
    """Where a LoRA's down projection starts: at random, or along the directions in which the loss falls fastest."""
    servable: bool = False
    """Select nothing but what plain LoRA can say (sensitune export): no biases, no norms, no class token."""
    peft: Mapping[str, Any] | str | None = field(default=None, hash=False)
    """Configuration of the method peft: in a file its fields, such as {peft_type: LORA, use_dora: true}; or the path of
    an adapter_config.json or of its folder, which is read at once. Without target_modules: every linear layer."""

    def __post_init__(self) -> None:
        check(self)
        if self.peft is not None:
            object.__setattr__(self, "peft", read_peft(self.peft))


@dataclass(frozen=True)
class ComputeSettings:
    """Where a run is computed, which does not make it another run."""

    device: DeviceName = "auto"
    """Where it runs: auto takes CUDA, else Apple's MPS, else the CPU."""
    num_workers: Annotated[int, Ge(0), Le(256)] = 0
    """Processes that read images; 0 reads them in this one."""
    sharded: bool = False
    """Whether processes that train together (torchrun) share the weights out, by FSDP2, instead of each holding all."""

    def __post_init__(self) -> None:
        check(self)
