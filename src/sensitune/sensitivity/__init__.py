"""How much each pretrained scalar matters for a task.

To first order, one gradient step on the scalar w_n alone lowers the loss in proportion to g_n², the square of its
gradient. The score is ``s_n = Σ over batches (∂ mean loss / ∂ w_n)²`` (He et al., ICCV 2023, equations 3 and 4), a
tensor of the parameter's shape for every ranked parameter, from one pass of forward and backward over a few batches.

With g a batch's gradient and w the weight, there are these scores:

=============================== =========================== ==========================================================
criterion                       score                       it asks
=============================== =========================== ==========================================================
``squared_gradient`` (default)  ``Σ g²``                    what a gradient step on the scalar alone gains
``weight_gradient``             ``Σ |w·g|``                 what setting it to zero costs (Molchanov et al., CVPR
                                                            2019)
``gradient_over_weight``        ``Σ |g| / max(|w|, 1e-8)``  what would change most relative to its size
``absolute_gradient_sum``       ``|Σ g|``                   what a step of a fixed length, as Adam's first is, gains
``magnitude``                   ``|w|``                     nothing of the data
``random``                      uniform in (0, 1]           nothing at all: what a choice without information costs
=============================== =========================== ==========================================================

With ``keep_gradients=True`` the same pass also returns Σ g itself, as `Sensitivity.gradients`; with
``keep_halves=True`` the scores of every second batch and of the others, as `Sensitivity.halves`.

Linear layers that bitsandbytes or torchao store in few bits, and those that accelerate has offloaded, are scored like
all others, from their inputs and their outputs' gradients; ``score_file`` keeps what does not fit in memory on disk.

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

from sensitune.sensitivity._criteria import CriterionName
from sensitune.sensitivity._estimate import estimate_sensitivity
from sensitune.sensitivity._sensitivity import Sensitivity

__all__ = ["CriterionName", "Sensitivity", "estimate_sensitivity"]
