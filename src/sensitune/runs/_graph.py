"""The backbone of a run as a graph of operations, and where in it each parameter is used."""

from __future__ import annotations

import torch

from sensitune._schema import show_reason
from sensitune.errors import ModelError
from sensitune.runs._run import Run


def graph_nodes(run: Run) -> dict[str, list[str]]:
    """Where each parameter of a run's backbone appears in its exported graph (torch.export).

    Args:
        run: The run; its backbone is loaded.

    Returns:
        Parameter -> names of graph nodes: its own, then those of the operations that take it.

    Raises:
        ModelError: If the backbone cannot be exported.
    """
    backbone = run.ingredients.fresh_backbone()
    image = torch.zeros(1, 3, backbone.image_size, backbone.image_size)
    try:
        program = torch.export.export(backbone.model.eval(), (image,), strict=False)
    except Exception as error:  # whatever a model's forward can raise, and the tracer's own
        raise ModelError(
            f"{backbone.spec.name} cannot be exported as a graph by torch.export ({type(error).__name__}: "
            f"{show_reason(error)}). Leave `--model-explorer` out: the page itself needs no graph."
        ) from error
    parameters = program.graph_signature.inputs_to_parameters
    return {
        parameters[node.name]: [node.name, *(user.name for user in node.users)]
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in parameters
    }
