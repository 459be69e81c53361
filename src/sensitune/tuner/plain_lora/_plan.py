"""From scores to a configuration of PEFT's own LoRA, and what it will train."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from peft import LoraConfig
from torch import nn

from sensitune.allocation import Allocation, compute_lora_start, lora_allocation
from sensitune.errors import ArgumentError, ModelError
from sensitune.sensitivity import Sensitivity
from sensitune.sites import ModelOutline
from sensitune.tuner.plain_lora._folder import write_lora_folder
from sensitune.tuner.plain_lora._names import exact_pattern, exact_targets, taken_along

_LOGGER = logging.getLogger(__name__)
_FROM_PLAN = frozenset({
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "r", "rank_pattern", "alpha_pattern",
    "fan_in_fan_out",
})  # fmt: skip
# What makes PEFT train something else than A and B of each module.
_CHANGES_THE_COUNT = frozenset({
    "bias", "lora_bias", "use_dora", "layer_replication", "target_parameters", "trainable_token_indices", "kasa_config",
    "monteclora_config", "use_qalora", "use_bdlora", "arrow_config",
})  # fmt: skip


@dataclass(frozen=True, eq=False)
class LoraPlan:
    """Where plain LoRAs go, and the configuration that puts them there.

    Attributes:
        config: For `peft.get_peft_model` or any trainer that takes a `peft.LoraConfig`; nothing of ours is in it.
        allocation: The same placement as a value: which matrices, which ranks.
        sensitivity: The scores that it was made from.
    """

    config: LoraConfig
    allocation: Allocation
    sensitivity: Sensitivity

    @property
    def ranks(self) -> dict[str, int]:
        """Full name of each tuned module -> its rank."""
        return _ranks(self.allocation)

    @property
    def trainable_params(self) -> int:
        """What PEFT will train, the head not counted: the number that is compared with the budget."""
        return self.allocation.trainable_params

    @property
    def head_params(self) -> int:
        """Parameters of the head, which PEFT trains whole as the configuration's `modules_to_save`."""
        return self.allocation.head_params if self.config.modules_to_save else 0

    def summary(self) -> str:
        """A plain-text table by operation, then the totals with and without the head."""
        return self.allocation.summary()

    def save_start(self, folder: str | os.PathLike[str], model: nn.Module | None = None) -> None:
        """Write the initial adapter: each LoRA starts along the gradient, and changes nothing until it is trained.

        `PeftModel.from_pretrained(model, folder, is_trainable=True)` loads it, and so do trainers that go on with a
        saved adapter. See `compute_lora_start` for the start.

        Args:
            folder: The adapter folder; made if it is missing, replaced if it is an older plain LoRA.
            model: The plain model that is to be trained, for the values of its head; not needed without one.

        Raises:
            ArgumentError: If the scores came without gradients, the configuration names a head and `model` is missing,
                or there is something else in the folder.
        """
        start = compute_lora_start(self.sensitivity, self.allocation)
        factors = {}
        for site_id, down in start.items():
            site = self.allocation.site(site_id)
            up = down.new_zeros(site.out_features, down.shape[0])
            factors[site.module] = down.reshape(-1, site.in_features, *(1 for _ in site.shape[2:])), up
        write_lora_folder(folder, self.config, factors, head=_head_values(self.config, model))


def plan_lora(
    sensitivity: Sensitivity,
    *,
    budget: int | str,
    rank: int | None = None,
    max_rank: int | None = None,
    alpha: float = 10.0,
    allowed: Sequence[str] | None = None,
    use_rslora: bool = False,
    lora_alpha: float | None = None,
    **options: Any,
) -> LoraPlan:
    """Place plain LoRAs under a budget, and say what they come to.

    Args:
        sensitivity: The scores. A fused q, k, v counts as the one matrix that it is stored as.
        budget: What PEFT may train, the head not counted; met to within one module's rank step, never exceeded. A
            number, or text as in `allocate`.
        rank: One rank for every chosen module, chosen whole by SPT's threshold; None = a rank of its own for each.
        max_rank: Highest rank where `rank` is None; None = 16.
        alpha: SPT's threshold: a module has earned a rank from (in + out) / alpha selected scalars on. Not LoRA's.
        allowed: Which modules, by operation, own name, full name or shell pattern: those that a server takes, for
            instance. None = every linear layer and 1×1 convolution.
        use_rslora: PEFT's rank-stabilised LoRA: outputs are scaled by lora_alpha / √rank.
        lora_alpha: LoRA's alpha. None = each module's own rank, so that every output is scaled by 1, as in `SptConfig`;
            a number is that of the highest rank, and the others get theirs in proportion. With `use_rslora` it is the
            same for all, and None is PEFT's default.
        **options: Other fields of `peft.LoraConfig`, such as ``task_type`` or ``lora_dropout``. `modules_to_save` is
            the head unless given.

    Returns:
        The plan, with the configuration in it.

    Raises:
        ArgumentError: If an option is out of range, belongs to the plan, or would change what PEFT trains.
        BudgetError: If `budget` does not pay for one rank, or exceeds what the ranks can use.
        ModelError: If the model has no linear layer, or a head whose name PEFT would take for other modules too.
        NonFiniteError: If a score is not finite.
    """
    _check_options(options)
    allocation = lora_allocation(sensitivity, budget=budget, rank=rank, max_rank=max_rank, alpha=alpha, allowed=allowed)
    head = list(allocation.head)
    given = {"modules_to_save": head or None} | options
    ranks, modules = _ranks(allocation), set(_modules(sensitivity.outline))
    _check_saved(given["modules_to_save"] or (), modules)
    highest = max(ranks.values())
    factor = 1.0 if lora_alpha is None else lora_alpha / highest
    alphas = {} if use_rslora else {name: _whole(factor * one) for name, one in ranks.items()}
    default = LoraConfig().lora_alpha if lora_alpha is None and use_rslora else _whole(factor * highest)
    config = LoraConfig(
        r=highest,
        lora_alpha=default,  # type: ignore[arg-type]  # PEFT divides, whatever the type
        target_modules=exact_targets(ranks, modules),
        rank_pattern=exact_pattern(ranks, highest),
        alpha_pattern=exact_pattern(alphas, default),
        use_rslora=use_rslora,
        fan_in_fan_out=all(site.transposed for site in allocation.outline.sites if site.id in allocation.structured),
        **given,
    )
    return LoraPlan(config, allocation, sensitivity)


def lora_config(
    sensitivity: Sensitivity,
    *,
    budget: int | str,
    rank: int | None = None,
    max_rank: int | None = None,
    alpha: float = 10.0,
    allowed: Sequence[str] | None = None,
    use_rslora: bool = False,
    lora_alpha: float | None = None,
    **options: Any,
) -> LoraConfig:
    """A ready `peft.LoraConfig` that spends a budget where the task's loss is most sensitive.

    It is `plan_lora` without the plan: what it comes to is logged (level INFO); take the plan to have the number.

    Args:
        sensitivity: As in `plan_lora`.
        budget: As in `plan_lora`.
        rank: As in `plan_lora`.
        max_rank: As in `plan_lora`.
        alpha: As in `plan_lora`.
        allowed: As in `plan_lora`.
        use_rslora: As in `plan_lora`.
        lora_alpha: As in `plan_lora`.
        **options: As in `plan_lora`.

    Returns:
        The configuration: exact module names, ranks and alphas, and nothing of ours.
    """
    plan = plan_lora(
        sensitivity,
        budget=budget,
        rank=rank,
        max_rank=max_rank,
        alpha=alpha,
        allowed=allowed,
        use_rslora=use_rslora,
        lora_alpha=lora_alpha,
        **options,
    )
    _LOGGER.info(
        "LoRAs on %d modules train %d of the %d parameters asked for, and a head of %d.",
        len(plan.ranks),
        plan.trainable_params,
        plan.allocation.budget,
        plan.head_params,
    )
    return plan.config


def _ranks(allocation: Allocation) -> dict[str, int]:
    return {allocation.site(site).module: rank for site, rank in allocation.structured.items()}


def _whole(alpha: float) -> float:
    """An alpha as a whole number where it is one: that is how people and servers write them."""
    return int(alpha) if alpha == int(alpha) else alpha


def _modules(outline: ModelOutline) -> Iterator[str]:
    """Names of all modules that hold parameters, and of those around them."""
    parameters = [site.parameter for site in outline.sites] + [*outline.always_trained, *outline.frozen]
    for name in [*(parameter.rpartition(".")[0] for parameter in parameters), *outline.head]:
        parts = name.split(".")
        yield from (".".join(parts[:depth]) for depth in range(1, len(parts) + 1) if name)


def _check_saved(saved: Sequence[str], modules: set[str]) -> None:
    if pair := taken_along(saved, modules):
        name, other = pair
        raise ModelError(
            f"PEFT cannot be told to train `{name}` alone: it takes `modules_to_save` as the ends of names, and would "
            f"train `{other}` whole too. Rename the head, or give `modules_to_save=None` and train it yourself."
        )


def _check_options(options: dict[str, Any]) -> None:
    known = {each.name for each in fields(LoraConfig)}
    for name in options:
        if name not in known:
            raise ArgumentError(f"`{name}` is not a field of PEFT's LoraConfig. Leave it out.")
        if name in _FROM_PLAN:
            raise ArgumentError(f"`{name}` follows from the plan. Leave it out, or set it on the configuration.")
        if name in _CHANGES_THE_COUNT:
            raise ArgumentError(
                f"`{name}` changes what PEFT trains, which the budget counts. Set it on the configuration that you "
                "get, if that is meant."
            )


def _head_values(config: LoraConfig, model: nn.Module | None) -> dict[str, Any]:
    """The head's tensors by their names in the model."""
    if not config.modules_to_save:
        return {}
    if model is None:
        raise ArgumentError(
            f"The start of a model with a head ({', '.join(config.modules_to_save)}) holds the head's values too. Give "
            "`model`, as it is before training."
        )
    return {
        f"{name}.{own}": value.detach()
        for name in config.modules_to_save
        for own, value in model.get_submodule(name).state_dict().items()
    }
