"""How much each pretrained scalar matters for a task.

To first order, one gradient step on the scalar w_n alone lowers the loss in proportion to g_n², the square of its
gradient. The score is ``s_n = Σ over batches (∂ mean loss / ∂ w_n)²`` (He et al., ICCV 2023, equations 3 and 4), a
tensor of the parameter's shape for every ranked parameter, from one pass of forward and backward over a few batches.

Example:
    >>> import torch
    >>> from sensitune.sensitivity import estimate_sensitivity
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> batches = [(torch.randn(16, 4), torch.randint(3, (16,))) for _ in range(2)]
    >>> sensitivity = estimate_sensitivity(model, batches)
    >>> {name: tuple(score.shape) for name, score in sensitivity.scores.items()}
    {'0.weight': (8, 4), '0.bias': (8,), '2.weight': (3, 8), '2.bias': (3,)}
"""

from sensitune.sensitivity._criteria import CRITERIA
from sensitune.sensitivity._estimate import estimate_sensitivity
from sensitune.sensitivity._sensitivity import Sensitivity

__all__ = ["CRITERIA", "Sensitivity", "estimate_sensitivity"]
