"""The plain Vision Transformer (Dosovitskiy et al. 2021, arXiv 2010.11929).

Shapes: B batch, N tokens (1 class token + patches), D width, C classes, S image side in pixels.
"""

from typing import NamedTuple

import torch
from ml_collections import ConfigDict
from torch import Tensor, nn

from models.layers import Block, PatchEmbed, init_patch_projection, init_weights

POOLS = ("token", "avg")


class ViTOutput(NamedTuple):
    """What a forward pass returns: `logits` (B, C) and `features` (B, D), which the head reads."""

    logits: Tensor
    features: Tensor


class VisionTransformer(nn.Module):
    """A ViT classifier whose state-dict keys are timm's (`blocks.0.attn.qkv.weight`, ...)."""

    def __init__(self, config: ConfigDict, num_classes: int) -> None:
        super().__init__()
        if config.pool not in POOLS:
            raise ValueError(f"unknown pool {config.pool!r}; known: {', '.join(POOLS)}")
        self.pool = config.pool
        d, eps = config.embed_dim, config.layer_norm_eps
        self.patch_embed = PatchEmbed(config.img_size, config.patch_size, d)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, d))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.patch_embed.num_patches, d))
        self.blocks = nn.ModuleList(
            Block(d, config.num_heads, config.mlp_dim, eps) for _ in range(config.depth)
        )
        # timm's names: `norm` before pooling the class token, `fc_norm` after averaging.
        norm = nn.LayerNorm(d, eps=eps)
        self.norm = norm if self.pool == "token" else nn.Identity()
        self.fc_norm = norm if self.pool == "avg" else nn.Identity()
        self.head = nn.Linear(d, num_classes)
        self._init_weights()

    def _init_weights(self) -> None:
        self.apply(init_weights)
        init_patch_projection(self.patch_embed.proj)
        nn.init.normal_(self.pos_embed, std=0.02)
        # A zero head: the first loss is log(C) whatever the seed (section 3.2).
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def no_weight_decay(self) -> set[str]:
        """Names of matrix-shaped parameters that weight decay must leave alone, as timm's."""
        return {"cls_token", "pos_embed"}

    def _tokens(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) images to (B, N, D): class token first, positions added."""
        patches = self.patch_embed(images)
        cls_token = self.cls_token.expand(patches.shape[0], -1, -1)
        return torch.cat((cls_token, patches), dim=1) + self.pos_embed

    def _features(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) images to the (B, D) features that the head reads."""
        x = self._tokens(images)
        for block in self.blocks[:-1]:
            x = block(x)
        if self.pool == "avg":
            x = self.blocks[-1](x)
            return self.fc_norm(x[:, 1:].mean(dim=1))
        # Only the class token is read below, so the last block computes no other token's query,
        # projection and MLP: 10/12 of a block saved, and the same numbers.
        return self.norm(self.blocks[-1](x, query_tokens=1)[:, 0])

    def forward(self, images: Tensor) -> ViTOutput:
        """(B, 3, S, S) normalised float32 images to logits (B, C) and features (B, D)."""
        features = self._features(images)
        return ViTOutput(self.head(features), features)
