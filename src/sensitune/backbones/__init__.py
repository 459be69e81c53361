"""A model's name or a weight file -> a backbone that is ready to be tuned.

    BackboneSpec(name, checkpoint, image_size, ...) ──load_backbone──▶ Backbone(model, mean, std, weights_hash, ...)

The name is a short one of the paper's backbones (`PUBLISHED_BACKBONES`: ``"vit_b16_in21k"``, ``"swin_b_in22k"``, ...),
one of timm's, with its tag if it matters, or ``"dinov2_vit_s14_focus"``, whose weights come out of an installed
package. A local file may be safetensors, a NumPy archive or a PyTorch pickle of plain tensors: files are read without
ever running code in them, and every backbone tensor must come from the file with its own shape. What a file holds
beyond that (its old head, parts of a pretraining task) is left out and listed in `Backbone.dropped`.

An image model of transformers is named by its folder or its repository (``"./my_vit"``, ``"OWNER/NAME"``); how its
images are prepared is read from its ``preprocessor_config.json``.

The head is new: weights from a normal distribution of standard deviation 0.02, truncated, and zero biases. A zero head
would make every gradient of the backbone zero, and with them the sensitivity (He et al., ICCV 2023, section 4.1).

Example:
    >>> from sensitune.backbones import BackboneSpec, load_backbone
    >>> spec = BackboneSpec("vit_tiny_patch16_224", pretrained=False, image_size=32, num_blocks=2)
    >>> backbone = load_backbone(spec, num_classes=5)
    >>> len(backbone.model.blocks), tuple(backbone.model.head.weight.shape), backbone.image_size
    (2, (5, 192), 32)
"""

from sensitune._installed import need

need("vision", what="sensitune.backbones")  # before what cannot be imported without it

from sensitune.backbones._check import check_backbone
from sensitune.backbones._focus import FOCUS_NAME
from sensitune.backbones._load import load_backbone
from sensitune.backbones._published import PUBLISHED_BACKBONES, PublishedBackbone
from sensitune.backbones._rebuild import rebuild_backbone
from sensitune.backbones._saved import save_checkpoint
from sensitune.backbones._saved_folder import check_folder, save_folder
from sensitune.backbones._transformers import local_weights, of_transformers, public_spec
from sensitune.backbones._types import Backbone, BackboneSpec

__all__ = [
    "FOCUS_NAME",
    "PUBLISHED_BACKBONES",
    "Backbone",
    "BackboneSpec",
    "PublishedBackbone",
    "check_backbone",
    "check_folder",
    "load_backbone",
    "local_weights",
    "of_transformers",
    "public_spec",
    "rebuild_backbone",
    "save_checkpoint",
    "save_folder",
]
