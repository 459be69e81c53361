"""Where a model can be tuned.

A *site* is one place of a model that the method can decide about: a weight matrix ``[out, in]`` (or one q, k or v slice
of a fused projection), a vector ``[n]``, or any other tensor. The classification head and the class token are trained
whatever the ranking says; the stem and the position embedding stay frozen (He et al., ICCV 2023, section 4.1).

Example:
    >>> import timm
    >>> from sensitune.sites import find_sites
    >>> model = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=10)
    >>> [site.id for site in find_sites(model)][2:5]
    ['blocks.0.attn.qkv.weight[q]', 'blocks.0.attn.qkv.weight[k]', 'blocks.0.attn.qkv.weight[v]']
"""

from sensitune.sites._caches import empty_caches, forget_caches
from sensitune.sites._geometry import Geometry, is_conv1d
from sensitune.sites._head import find_head, name_head
from sensitune.sites._outline import find_sites, outline_model
from sensitune.sites._plain import is_plain_convolution, is_plain_linear
from sensitune.sites._quantised import (
    allow_repacking,
    as_computed,
    dequantised_weight,
    quantised_kind,
    repacked_by,
    stop_repacking,
    stored_bytes_kept,
    unknown_storage,
)
from sensitune.sites._roles import is_token, parent_reads_weight
from sensitune.sites._shared import tied_places
from sensitune.sites._types import Kind, ModelOutline, Site
from sensitune.sites._wrapped import unwrapped

__all__ = [
    "Geometry",
    "Kind",
    "ModelOutline",
    "Site",
    "allow_repacking",
    "as_computed",
    "dequantised_weight",
    "empty_caches",
    "find_head",
    "find_sites",
    "forget_caches",
    "is_conv1d",
    "is_plain_convolution",
    "is_plain_linear",
    "is_token",
    "name_head",
    "outline_model",
    "parent_reads_weight",
    "quantised_kind",
    "repacked_by",
    "stop_repacking",
    "stored_bytes_kept",
    "tied_places",
    "unknown_storage",
    "unwrapped",
]
