"""Block indices and operation names, read off the module tree."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

_OPERATIONS = {
    "query": "q", "q_proj": "q", "q_lin": "q", "to_q": "q", "wq": "q",
    "key": "k", "k_proj": "k", "k_lin": "k", "to_k": "k", "wk": "k",
    "value": "v", "v_proj": "v", "v_lin": "v", "to_v": "v", "wv": "v",
    "o_proj": "proj", "out_proj": "proj", "out_lin": "proj", "to_out": "proj", "wo": "proj", "o": "proj",
    "attention.output.dense": "proj", "attn.c_proj": "proj", "attention.out": "proj",
    "intermediate.dense": "fc1", "mlp.c_fc": "fc1", "lin1": "fc1", "wi": "fc1", "linear1": "fc1",
    "output.dense": "fc2", "mlp.c_proj": "fc2", "lin2": "fc2", "DenseReluDense.wo": "fc2", "linear2": "fc2",
    "gate_proj": "gate", "up_proj": "up", "down_proj": "down",
}  # fmt: skip


def _is_container(module: nn.Module) -> bool:
    """A list of submodules that are themselves made of modules (not, say, a Sequential of leaf layers)."""
    children = list(module.children())
    return (
        isinstance(module, (nn.ModuleList, nn.Sequential))
        and bool(children)
        and all(any(True for _ in child.children()) for child in children)
    )


def _is_stage(module: nn.Module) -> bool:
    """A stage groups blocks: it is a list of them or has, as a direct child, a list of modules of one class."""
    if _is_container(module):
        return True
    lists = [child for child in module.children() if _is_container(child)]
    return any(len({type(each) for each in child.children()}) == 1 for child in lists)


def find_blocks(model: nn.Module) -> dict[str, int]:
    """Name the blocks of a model.

    A block is an element of a list of composite modules that is not itself a stage of such lists (Swin's and
    ConvNeXt's stages hold the blocks; a T5 block holds sublayers of different classes and stays one block).

    Returns:
        Name of each block -> its index, counted over the whole model.
    """
    containers = {name for name, module in model.named_modules() if _is_container(module)}
    blocks: dict[str, int] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{block}.") for block in blocks)
        if name.rpartition(".")[0] in containers and not inside and not _is_stage(module) and name not in containers:
            blocks[name] = len(blocks)
    return blocks


def block_of(name: str, blocks: Mapping[str, int]) -> tuple[int | None, str]:
    """Index of the block whose subtree holds a module, and the module's name within it; None and the whole name."""
    parts = name.split(".")
    for depth in range(len(parts), 0, -1):
        index = blocks.get(".".join(parts[:depth]))
        if index is not None:
            return index, ".".join(parts[depth:])
    return None, name


def operation_name(module: str, parameter: str, *, owner_is_leaf: bool) -> str:
    """The field's short name for what a parameter's module does, or the module's own name where the field has none.

    Args:
        module: Name of the owning module relative to its block (or to the model, outside the blocks).
        parameter: The parameter's own name, used when it is not a composite module's weight or bias (a token, a layer
            scale, a relative position table).
        owner_is_leaf: Whether the owning module has no children.

    Returns:
        For example ``"q"``, ``"fc1"``, ``"norm1"`` or ``"relative_position_bias_table"``.
    """
    if not module or not (owner_is_leaf or parameter in {"weight", "bias"}):
        return parameter
    parts = module.split(".")
    for depth in (3, 2, 1):
        known = _OPERATIONS.get(".".join(parts[-depth:])) if depth <= len(parts) else None
        if known:
            return known
    named = next(i for i in range(len(parts) - 1, -1, -1) if not parts[i].isdigit() or i == 0)
    return ".".join(parts[named:])
