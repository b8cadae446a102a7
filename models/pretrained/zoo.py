"""Table of public weights, by the names that `--pretrained` takes; data only, no torch.

Sources: repositories, sizes of images, means and standard deviations from timm 1.0.31
(`timm/models/vision_transformer.py`, `default_cfgs`), by which also AugReg's, DINO's, DINOv2's and
SigLIP's licences are Apache 2.0. A hash, commit or number of bytes stands here only where a public
text was read that names it; the others the server states when weights are fetched.
"""

from collections.abc import Mapping
from typing import NamedTuple

from models.pretrained.profiles import CLIP, CLIP_QUICKGELU, GOOGLE, IMAGENET, SIGLIP, Profile


class Row(NamedTuple):
    """Public weights, and how to use them."""

    repository: str
    model_type: str
    native_size: int  # side of the images that they were trained on, pixels
    profile: Profile
    good_for: str
    source: str  # the paper
    img_size: int = 224  # side of the images that is recommended here
    revision: str = "main"  # a commit where a source names one
    file: str = "model.safetensors"
    size: int | None = None  # bytes
    sha256: str | None = None  # as published
    licence: str | None = "apache-2.0"  # None: the server says it


_AUGREG = "Steiner et al. 2022, arXiv 2106.10270"
_DINO = "Caron et al. 2021, arXiv 2104.14294"
_DINOV2 = "Oquab et al. 2024, arXiv 2304.07193"
_REGISTERS = "Darcet et al. 2024, arXiv 2309.16588"
_OPENAI = "Radford et al. 2021, arXiv 2103.00020"
_LAION = "Cherti et al. 2023, arXiv 2212.07143"
_OF_IN21K = "fine-tuning; learned from labels of ImageNet-21k"
_OF_DINO = "nearest neighbours and parts; learned without labels"
_OF_DINOV2 = "a frozen trunk with a linear head: the best known here without fine-tuning"
_OF_REGISTERS = "as without registers, with cleaner attention maps"
_OF_CLIP = "fine-tuning and unusual images; learned from captions"

ZOO: Mapping[str, Row] = {
    "augreg-ti16": Row(
        *("timm/vit_tiny_patch16_224.augreg_in21k", "ViT-Ti_16", 224, GOOGLE),
        *(_OF_IN21K, _AUGREG),
    ),
    "augreg-s16": Row(
        *("timm/vit_small_patch16_224.augreg_in21k", "ViT-S_16", 224, GOOGLE),
        *(_OF_IN21K, _AUGREG),
    ),
    "augreg-b16": Row(
        *("timm/vit_base_patch16_224.augreg_in21k", "ViT-B_16", 224, GOOGLE),
        *(_OF_IN21K, _AUGREG),
    ),
    "augreg-l16": Row(
        *("timm/vit_large_patch16_224.augreg_in21k", "ViT-L_16", 224, GOOGLE),
        *(_OF_IN21K, _AUGREG),
    ),
    "in21k-b16": Row(
        *("timm/vit_base_patch16_224.orig_in21k", "ViT-B_16", 224, GOOGLE),
        *("fine-tuning: what TransFG starts from", "Dosovitskiy et al. 2021, arXiv 2010.11929"),
        sha256="1cf14745201dfaffba38831c7cc1003c51618569d0a5dd31a895fe604c427253",
    ),
    "dino-s16": Row(
        *("timm/vit_small_patch16_224.dino", "ViT-S_16", 224, IMAGENET, _OF_DINO, _DINO),
    ),
    "dino-b16": Row(
        *("timm/vit_base_patch16_224.dino", "ViT-B_16", 224, IMAGENET, _OF_DINO, _DINO),
        sha256="93181583427d6de3e18ab0e6ee4df35736cfc51a3c1bf9ae0e9b53b1316598dc",
    ),
    "dinov2-s14": Row(
        *("timm/vit_small_patch14_dinov2.lvd142m", "ViT-S_14", 518, IMAGENET),
        *(_OF_DINOV2, _DINOV2),
        revision="4610ca143709d58a633b6397a74412c2c3842454",
        size=88_240_510,
        sha256="04d27f3400d059fc0cfd7d17dd1909a75bf3ea8fb3eeb48b97cb99e57ee20081",
    ),
    "dinov2-b14": Row(
        *("timm/vit_base_patch14_dinov2.lvd142m", "ViT-B_14", 518, IMAGENET),
        *(_OF_DINOV2, _DINOV2),
        revision="4685c99dabffe5affac90bd99dbffd25801ae58d",
        size=346_334_872,
        sha256="55cbb5d887b336d430e649c277b85a1429e724871f9d02ac16203235886d8c7b",
    ),
    "dinov2-l14": Row(
        *("timm/vit_large_patch14_dinov2.lvd142m", "ViT-L_14", 518, IMAGENET),
        *(_OF_DINOV2, _DINOV2),
        revision="4741e1cafbf45415e77074bb0cb42dba76c8684a",
        size=1_217_502_758,
        sha256="0424a5d1b515278cba3c6640ccbeaacc41de59d3a93df0dd5e494285eea2b355",
    ),
    "dinov2-reg-s14": Row(
        *("timm/vit_small_patch14_reg4_dinov2.lvd142m", "ViT-S_14", 518, IMAGENET),
        *(_OF_REGISTERS, _REGISTERS),
    ),
    "dinov2-reg-b14": Row(
        *("timm/vit_base_patch14_reg4_dinov2.lvd142m", "ViT-B_14", 518, IMAGENET),
        *(_OF_REGISTERS, _REGISTERS),
        revision="3b06466a5548c52b8b98822e1390987695fcbf82",
        size=346_344_168,
        sha256="c24ecfb4a1d8ca79193f6b9efcffc461872a09ddac43a0931357e4802931a006",
    ),
    "dinov2-reg-l14": Row(
        *("timm/vit_large_patch14_reg4_dinov2.lvd142m", "ViT-L_14", 518, IMAGENET),
        *(_OF_REGISTERS, _REGISTERS),
    ),
    "facebook-dinov2-b14": Row(  # the same model in Hugging Face's layout
        *("facebook/dinov2-base", "ViT-B_14", 518, IMAGENET, _OF_DINOV2, _DINOV2),
        revision="f9e44c814b77203eaa57a6bdbbd535f21ede1415",
        size=346_345_912,
        sha256="d73036b56966966d07975d696bde331762f37297e2f095de8cea0040c3aa0841",
    ),
    # timm gives no CLIP a licence of its own: the server says it. OpenAI's have the quick GELU, of
    # which timm's config.json beside them says nothing (notes in `default_cfgs`).
    "clip-openai-b16": Row(
        *("timm/vit_base_patch16_clip_224.openai", "ViT-B_16", 224, CLIP_QUICKGELU),
        *(_OF_CLIP, _OPENAI),
        revision="977e3dd0ec55ab8da155f2fbeb6b5f54948b6e3d",
        licence=None,
    ),
    "clip-openai-l14": Row(
        *("timm/vit_large_patch14_clip_224.openai", "ViT-L_14", 224, CLIP_QUICKGELU),
        *(_OF_CLIP, _OPENAI),
        licence=None,
    ),
    "clip-laion-b16": Row(
        *("timm/vit_base_patch16_clip_224.laion2b", "ViT-B_16", 224, CLIP, _OF_CLIP, _LAION),
        licence=None,
    ),
    "clip-laion-l14": Row(  # unlike LAION's B/16, its pixels are scaled as Google's
        *("timm/vit_large_patch14_clip_224.laion2b", "ViT-L_14", 224),
        *(CLIP._replace(**GOOGLE.normalization), _OF_CLIP, _LAION),
        licence=None,
    ),
    "siglip-b16": Row(
        *("timm/vit_base_patch16_siglip_224.webli", "ViT-B_16", 224, SIGLIP),
        *(_OF_CLIP, "Zhai et al. 2023, arXiv 2303.15343"),
    ),
    "siglip2-b16": Row(
        *("timm/vit_base_patch16_siglip_224.v2_webli", "ViT-B_16", 224, SIGLIP),
        *(_OF_CLIP, "Tschannen et al. 2025, arXiv 2502.14786"),
    ),
    # BioCLIP, the first, is published as a pickle only. Commit, size and hashes of the second: pins
    # of several public repositories; its open_clip_config.json, by that hash, has CLIP's profile.
    "bioclip2-l14": Row(
        *("imageomics/bioclip-2", "ViT-L_14", 224, CLIP),
        *(
            "plants, animals, fungi; learned from names of the tree of life",
            "Gu et al. 2025, arXiv 2505.23883",
        ),
        revision="2957b322090f9cb17ae72c71981c7218a28d81e0",
        file="open_clip_model.safetensors",
        size=1_710_517_724,
        sha256="b7b2bf6fbc95799e42630e394cf95803892ab447c1a8ab629dbc82fbeaf7dfef",
        licence=None,
    ),
    "inat21-l14": Row(  # profile: that of timm's `vit_large_patch14_clip_224.datacompxl`
        *("timm/vit_large_patch14_clip_336.datacompxl_ft_inat21", "ViT-L_14", 336, CLIP),
        *(
            "plants and animals; learned from iNaturalist 2021",
            "Gadre et al. 2023, arXiv 2304.14108",
        ),
        img_size=336,
        size=1_255_058_062,
        sha256="1f228b29f101407ffa88f8e6a17adc1e1658b60f160984926417692d5da65805",
        licence="cc-by-nc-4.0",
    ),
}
