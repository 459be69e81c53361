"""The backbones of the paper: short name -> timm's model, the original file, its normalisation, licence and address."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, TypeAlias

Triple: TypeAlias = tuple[float, float, float]

_HALF: Final = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET_NORMALISATION: Final = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_GOOGLE: Final = "https://storage.googleapis.com/vit_models/imagenet21k"
_META: Final = "https://dl.fbaipublicfiles.com"
_MICROSOFT: Final = "https://github.com/SwinTransformer/storage/releases/download/v1.0.0"


@dataclass(frozen=True, slots=True)
class PublishedBackbone:
    """One pretrained backbone as its authors published it.

    Attributes:
        name: Sensitune's short name.
        timm_name: The timm model, with the tag whose weights they are where timm has them.
        address: Where the original file is downloaded from.
        mean: Per-channel mean that the weights were trained with, for pixels in [0, 1].
        std: Per-channel standard deviation, likewise.
        licence: Licence of the weights, by its SPDX identifier.
        pretraining: What the weights were trained on and how.
        on_hub: Whether timm has the very weights under `timm_name`; if not, the original file is needed.
    """

    name: str
    timm_name: str
    address: str
    mean: Triple
    std: Triple
    licence: str
    pretraining: str
    on_hub: bool = True

    @property
    def file(self) -> str:
        """Name of the original weight file."""
        return self.address.rpartition("/")[2]


_SUPERVISED: Final = ("Apache-2.0", "ImageNet-21k, supervised")
_TABLE: Final = (
    PublishedBackbone(
        "vit_b16_in21k", "vit_base_patch16_224.orig_in21k", f"{_GOOGLE}/ViT-B_16.npz", *_HALF, *_SUPERVISED
    ),
    PublishedBackbone(
        "vit_l16_in21k", "vit_large_patch16_224.orig_in21k", f"{_GOOGLE}/ViT-L_16.npz", *_HALF, *_SUPERVISED
    ),
    PublishedBackbone(
        "vit_h14_in21k", "vit_huge_patch14_224.orig_in21k", f"{_GOOGLE}/ViT-H_14.npz", *_HALF, *_SUPERVISED
    ),
    PublishedBackbone(
        "vit_b16_mae",
        "vit_base_patch16_224.mae",
        f"{_META}/mae/pretrain/mae_pretrain_vit_base.pth",
        *IMAGENET_NORMALISATION,
        licence="CC-BY-NC-4.0",
        pretraining="ImageNet-1k, masked autoencoder",
    ),
    PublishedBackbone(
        "vit_b16_mocov3",
        "vit_base_patch16_224.mae",  # for the architecture; the file's head is that of its linear probe
        f"{_META}/moco-v3/vit-b-300ep/linear-vit-b-300ep.pth.tar",
        *IMAGENET_NORMALISATION,
        licence="CC-BY-NC-4.0",
        pretraining="ImageNet-1k, MoCo v3, 300 epochs",
        on_hub=False,
    ),
    PublishedBackbone(
        "swin_b_in22k",
        "swin_base_patch4_window7_224.ms_in22k",
        f"{_MICROSOFT}/swin_base_patch4_window7_224_22k.pth",
        *IMAGENET_NORMALISATION,
        licence="MIT",
        pretraining="ImageNet-22k, supervised",
    ),
    PublishedBackbone(
        "convnext_b_in22k",
        "convnext_base.fb_in22k",
        f"{_META}/convnext/convnext_base_22k_224.pth",
        *IMAGENET_NORMALISATION,
        licence="Apache-2.0",
        pretraining="ImageNet-22k, supervised",
    ),
)

PUBLISHED_BACKBONES: Final[Mapping[str, PublishedBackbone]] = MappingProxyType({each.name: each for each in _TABLE})
"""The backbones of the paper and the larger vision transformers, by short name."""
