"""The configuration of an SPT adapter: JSON-ready, complete enough to rebuild every shape before tensors load."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftConfig
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import nn

from sensitune._files import apply_umask
from sensitune._schema import NonNegativeInt, PositiveInt, Share, check, read_json, shorten
from sensitune.allocation import Allocation
from sensitune.errors import AdapterFileError, ArgumentError, SensituneError
from sensitune.sites import find_head, unwrapped
from sensitune.tuner._adapter_card import write_adapter_card
from sensitune.tuner._adapter_folder import CONFIG_NAME, WEIGHTS_NAME, check_whole, weight_files
from sensitune.tuner._plan import SitePlan, read_plans
from sensitune.tuner._register import spt_type


@dataclass
class SptConfig(PeftConfig):
    """Configuration of Sensitivity-aware Parameter-efficient fine-Tuning (He et al., ICCV 2023).

    Usually made by `from_allocation`. Without an allocation it works like any PEFT configuration: the target modules
    get a LoRA or Adapter of rank `r`, or with ``r=0`` a number of randomly placed sparse entries.

    Args:
        target_modules: Names, suffixes or a regular expression of the modules to tune; None takes PEFT's LoRA default
            for the architecture. Not used with a site plan, which names every parameter exactly.
        r: Rank of the LoRA or Adapter; 0 tunes sparsely.
        structured_type: ``"lora"`` or ``"adapter"``.
        num_sparse: Sparse entries per module where `r` is 0; a smaller module is tuned whole.
        rank_pattern: Module name pattern -> rank, overriding `r`.
        sparse_pattern: Module name pattern -> number of sparse entries, overriding `num_sparse`.
        dropout: Probability of dropping an element of a LoRA's or Adapter's input in training.
        drop_path: Probability of dropping a sample's LoRA or Adapter output in training.
        init_weights: True starts as the identity; False draws all values at random (for tests).
        modules_to_save: Modules trained whole and saved with the adapter, such as the classification head. Beside a
            site plan a module's full name stands for that module alone; otherwise names match as suffixes, as in PEFT.
        exclude_modules: Names, suffixes or a regular expression of modules to leave out.
        check_calls: Raise if the first training forward never calls a tuned layer; False for models that skip layers
            at random.
        layers_to_transform: Indices of the layers to tune, as in PEFT's LoRA.
        layers_pattern: Name of the layer list, as in PEFT's LoRA.
        site_plan: Site id -> what is done to it; written by `from_allocation`.
        rule: How the placement came about, for the model card (``"spt"``, ``"uniform"``, ...).
        trainable_params: Trained scalars without the head, for the model card; None when not from an allocation.
        budget: The budget of the allocation, for the model card.
        base_description: Class and checkpoint of the base, for the model card where the base has no name of its own.
    """

    target_modules: set[str] | list[str] | tuple[str, ...] | str | None = field(
        default=None, metadata={"help": "Modules to tune: a list of names or suffixes, or a regular expression."}
    )
    r: NonNegativeInt = field(default=8, metadata={"help": "Rank of the LoRA or Adapter; 0 tunes sparsely."})
    structured_type: Literal["lora", "adapter"] = field(default="lora", metadata={"help": "'lora' or 'adapter'."})
    num_sparse: PositiveInt = field(default=1024, metadata={"help": "Sparse entries per module where r is 0."})
    rank_pattern: dict[str, NonNegativeInt] = field(
        default_factory=dict, metadata={"help": "Module name pattern -> rank."}
    )
    sparse_pattern: dict[str, PositiveInt] = field(
        default_factory=dict, metadata={"help": "Module name pattern -> entries."}
    )
    dropout: Share = field(default=0.0, metadata={"help": "Dropout on the input of a LoRA or Adapter."})
    drop_path: Share = field(default=0.0, metadata={"help": "Drop-path on the output of a LoRA or Adapter."})
    init_weights: bool = field(default=True, metadata={"help": "True starts as the identity, False at random."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Modules trained whole and saved."})
    exclude_modules: set[str] | list[str] | str | None = field(default=None, metadata={"help": "Modules to leave out."})
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "Layer indices to tune."})
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "Name of the layer list."})
    check_calls: bool = field(default=True, metadata={"help": "Raise for layers the first training forward skips."})
    site_plan: dict[str, dict[str, Any]] | None = field(
        default=None, metadata={"help": "Site id -> what is done to it; written by SptConfig.from_allocation."}
    )
    rule: str | None = field(default=None, metadata={"help": "How the placement came about."})
    trainable_params: NonNegativeInt | None = field(
        default=None, metadata={"help": "Trained scalars but for the head."}
    )
    budget: NonNegativeInt | None = field(default=None, metadata={"help": "The budget of the allocation."})
    base_description: str | None = field(default=None, metadata={"help": "Class and checkpoint of the base."})

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = spt_type()
        # Indices of an allocation's sparse entries by site id. Tensors do not fit into JSON: on disk they are in the
        # adapter's state dict, and a configuration that was loaded from disk has none here.
        self.sparse_indices: dict[str, torch.Tensor] = {}
        # The file that belongs to a configuration from a folder, for messages about it.
        self.weights_file: Path | None = None
        check(self)
        self.plans: dict[str, SitePlan] = read_plans(self.site_plan or {})
        # As PEFT's own configurations do: names are looked up one by one.
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)
        if self.layers_pattern and self.layers_to_transform is None:
            raise ArgumentError("`layers_pattern` needs `layers_to_transform`. Give the indices of the layers to tune.")

    @classmethod
    def from_allocation(
        cls,
        allocation: Allocation,
        *,
        dropout: float = 0.1,
        drop_path: float = 0.1,
        proj_adapter_input: Literal["output", "input"] = "output",
        **options: Any,
    ) -> SptConfig:
        """The configuration that trains exactly what an allocation says, and the head.

        Args:
            allocation: From `allocate` or one of the baselines.
            dropout: As in `SptConfig`; the published recipe's 0.1 by default.
            drop_path: As in `SptConfig`; the published recipe's 0.1 by default.
            proj_adapter_input: What the Adapter of an attention output projection reads: its ``"output"`` like every
                other Adapter, or its ``"input"`` as in the published code.
            **options: Any other field of `SptConfig` or `PeftConfig`.

        Returns:
            A configuration for `peft.get_peft_model`.

        Raises:
            ArgumentError: If `proj_adapter_input` is neither, or the allocation trains nothing at all.
        """
        if proj_adapter_input not in {"output", "input"}:
            raise ArgumentError(f'`proj_adapter_input` must be "output" or "input". Got {proj_adapter_input!r}.')
        plans = _plans_of(allocation, reads_input=proj_adapter_input == "input")
        if not plans and not allocation.head:
            raise ArgumentError("The allocation trains nothing: no site and no head. Raise `budget` or add a head.")
        head = list(allocation.head)
        config = cls(
            **({"modules_to_save": head or None} | options),
            r=max(allocation.structured.values(), default=0),
            structured_type=allocation.structured_type or "lora",
            dropout=dropout,
            drop_path=drop_path,
            rule=allocation.rule,
            trainable_params=allocation.trainable_params,
            budget=allocation.budget,
        )
        return config.with_plans(plans, allocation.sparse)

    @classmethod
    def for_whole_model(cls, model: nn.Module, *, head: str | Sequence[str] | None = None, **options: Any) -> SptConfig:
        """The configuration of full fine-tuning: every parameter whole, as its difference from the base, and the head.

        Args:
            model: The plain model.
            head: Names of the modules that form the head; None finds them, see `sensitune.sites.find_head`.
            **options: Any other field of `SptConfig` or `PeftConfig`.

        Returns:
            A configuration for `peft.get_peft_model`.
        """
        model, head = unwrapped(model), find_head(model, head)
        plans = {
            name: SitePlan(parameter=name, form="whole", size=parameter.numel(), shape=tuple(parameter.shape))
            for name, parameter in model.named_parameters()
            if not name.startswith(tuple(f"{each}." for each in head))
        }
        config = cls(
            **({"modules_to_save": list(head) or None} | options),
            rule="full",
            trainable_params=sum(plan.numel for plan in plans.values()),
        )
        return config.with_plans(plans, {})

    def with_plans(
        self, plans: Mapping[str, SitePlan], indices: Mapping[str, torch.Tensor], **changes: Any
    ) -> SptConfig:
        """This configuration with another site plan.

        Args:
            plans: Site id -> plan.
            indices: Site id -> flat indices of the entries, int64 ``[n]``, of every sparse site.
            **changes: Other fields to change.

        Returns:
            A new configuration.
        """
        site_plan = {site: plan.to_dict() for site, plan in plans.items()}
        # The plan names parameters exactly, on leaf modules or not. PEFT's dummy target is the only value with which a
        # plan without any submodule (class token and head) is not an error.
        target_modules = None if any(plan.module for plan in plans.values()) else DUMMY_TARGET_MODULES
        config = replace(self, site_plan=site_plan, target_modules=target_modules, **changes)
        config.sparse_indices = dict(indices)
        return config

    @classmethod
    def from_json_file(cls, path_json_file: str, **kwargs: Any) -> dict[str, Any]:
        """Read ``adapter_config.json`` as plain values.

        Args:
            path_json_file: The file.
            **kwargs: As in PEFT.

        Returns:
            Field -> value.

        Raises:
            AdapterFileError: If it is damaged.
        """
        values = read_json(path_json_file, error=AdapterFileError)
        if not isinstance(values, dict):
            raise AdapterFileError(f"{path_json_file} must hold a group of settings. Got {shorten(values)}.")
        plain: dict[str, Any] = super().from_json_file(path_json_file, **kwargs)
        return plain

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], subfolder: str | None = None, **kwargs: Any
    ) -> PeftConfig:
        """Read the configuration of an adapter folder or of a repository on the hub.

        Args:
            pretrained_model_name_or_path: The folder or repository.
            subfolder: Where in it.
            **kwargs: As in PEFT.

        Returns:
            The configuration; that of another method if the file is one's.

        Raises:
            AdapterFileError: If it is damaged, or promises more than the weights beside it can hold.
        """
        folder = Path(pretrained_model_name_or_path, subfolder or "")
        weights = next((path for path in weight_files(folder) if path.name == WEIGHTS_NAME), None)
        # A type error is what PEFT says of a file that is none of its own; beside weights it is a damaged one.
        damaged = (SensituneError, ValueError, TypeError) if weights is not None else (SensituneError, ValueError)
        try:
            if weights is not None:
                cls._check_settings(folder / CONFIG_NAME)
            config: PeftConfig = super().from_pretrained(os.fspath(pretrained_model_name_or_path), subfolder, **kwargs)
        except AdapterFileError:
            raise
        except damaged as error:
            raise AdapterFileError(f"{folder / CONFIG_NAME}: {error}") from error
        if isinstance(config, SptConfig):  # PEFT makes what the file says it is
            config.weights_file = weights
            config._check_claims(folder)
        return config

    @classmethod
    def _check_settings(cls, path: Path) -> None:
        """What PEFT would leave out with a warning may be a damaged setting, and the weights mean something else."""
        values = cls.from_json_file(os.fspath(path))
        unknown = values.keys() - {each.name for each in fields(cls)}
        # Another method, or another version of PEFT, may have settings of its own.
        ours = values.get("peft_type") == "SPT" and values.get("peft_version") in (None, version("peft"))
        if unknown and ours:
            raise AdapterFileError(f"{path}: {shorten(min(unknown))} is not a setting of SPT.")

    def _check_claims(self, folder: Path) -> None:
        """Before memory is taken for what is promised; a value takes at least one byte."""
        if self.weights_file is None:
            return
        check_whole(self.weights_file)
        claimed = sum(plan.num_params for plan in self.plans.values())
        if self.site_plan is None:
            claimed = max([self.r, *self.rank_pattern.values()])
        if claimed > (size := self.weights_file.stat().st_size):
            raise AdapterFileError(
                f"{folder / CONFIG_NAME} promises {claimed:,} values, more than {self.weights_file.name} of {size:,} "
                "bytes can hold. Restore the files."
            )

    def save_pretrained(self, save_directory: str | os.PathLike[str], **options: Any) -> None:
        """Write ``adapter_config.json``, and the model card beside it.

        PEFT calls it last in an adapter folder, and has the weights written as a private file: they get the umask's
        permissions, like the other files.

        Args:
            save_directory: The adapter folder.
            **options: As in PEFT.
        """
        super().save_pretrained(os.fspath(save_directory), **options)
        folder = Path(save_directory)
        for weights in weight_files(folder):
            apply_umask(weights)
        write_adapter_card(folder, self)


def _plans_of(allocation: Allocation, *, reads_input: bool) -> dict[str, SitePlan]:
    plans: dict[str, SitePlan] = {}
    for name in allocation.always_trained:
        shape = tuple(allocation.outline.always_trained[name])
        plans[name] = SitePlan(parameter=name, form="whole", size=math.prod(shape), shape=shape)
    sizes: Mapping[str, tuple[Any, int]] = (
        {site: (allocation.structured_type, rank) for site, rank in allocation.structured.items()}
        | dict.fromkeys(allocation.vectors, ("whole", 0))
        | {site: ("sparse", int(indices.numel())) for site, indices in allocation.sparse.items()}
    )
    for site in allocation.outline.sites:
        if site.id not in sizes:
            continue
        form, size = sizes[site.id]
        plans[site.id] = SitePlan(
            parameter=site.parameter,
            form=form,
            size=size or site.numel,
            shape=site.shape,
            rows=site.rows,
            transposed=site.transposed,
            reads_input=reads_input and form == "adapter" and site.operation == "proj",
        )
    return plans
