"""Define the backbone and the plain Vision Transformer (Dosovitskiy et al. 2021, arXiv 2010.11929).

Shapes: B batch, N tokens (class token, registers, patches), D width, C classes, H heads, S image
side in pixels.
"""

from typing import NamedTuple

import torch
from ml_collections import ConfigDict
from torch import Tensor, nn

from models.activation_checkpointing import checkpointed
from models.configs import POOL_READS, feature_kinds, grid_side, num_prefix_tokens
from models.layers import (
    AttentionPool,
    Block,
    PatchEmbed,
    init_patch_projection,
    init_weights,
    select_tokens,
)


class ViTOutput(NamedTuple):
    """The output of a forward pass."""

    logits: Tensor  # (B, C)
    features: Tensor  # (B, D), input of the head; (B, 2 * D) if it reads two kinds
    # (B, H, 2) x and y in [0, 1] of the input square: the center of the patch that each attention
    # head selected; None in a model without part selection.
    parts: Tensor | None = None


class Backbone(nn.Module):
    """Embeddings and blocks of a ViT; state-dict keys are timm's (`blocks.0.norm1.weight`, ...)."""

    def __init__(self, config: ConfigDict, num_blocks: int) -> None:
        super().__init__()
        d = config.embed_dim
        self.depth = config.depth
        self.num_prefix_tokens = num_prefix_tokens(config)
        # Activation checkpointing: whether the backward pass computes blocks again to save memory.
        self.grad_checkpointing = False
        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, d)) if config.class_token else None
        self.reg_token = (
            nn.Parameter(torch.zeros(1, config.num_registers, d)) if config.num_registers else None
        )
        self.pos_class_token = config.class_token and config.pos_class_token
        num_positions = grid_side(config) ** 2 + int(self.pos_class_token)
        self.pos_embed = nn.Parameter(torch.zeros(1, num_positions, d))
        self.pos_drop = nn.Dropout(config.dropout)
        self.norm_pre = self._norm(config) if config.pre_norm else nn.Identity()
        last = max(1, config.depth - 1)
        self.blocks = nn.ModuleList(
            Block(config, config.drop_path * i / last) for i in range(num_blocks)
        )

    @staticmethod
    def _norm(config: ConfigDict) -> nn.LayerNorm:
        return nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)

    def _init_weights(self) -> None:
        """Draw all weights; the head is zero, so that the first loss is log(C) (section 3.2)."""
        self.apply(init_weights)
        init_patch_projection(self.patch_embed.proj)
        nn.init.normal_(self.pos_embed, std=0.02)
        if self.reg_token is not None:
            nn.init.normal_(self.reg_token, std=1e-6)  # as DINOv2 starts its registers
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def no_weight_decay(self) -> set[str]:
        """Return the matrix-shaped parameters that weight decay must leave alone, as timm does."""
        spared = {"cls_token", "pos_embed", "reg_token", "attn_pool.latent"}
        return {name for name, _ in self.named_parameters() if name in spared}

    def layer_of(self, parameter: str) -> int:
        """Return the layer of a parameter: 0 embeddings, i the i-th block, depth + 1 the rest."""
        embeddings = ("patch_embed", "cls_token", "reg_token", "pos_embed", "norm_pre")
        root, _, rest = parameter.partition(".")
        if root in embeddings:
            return 0
        if root == "blocks":
            return 1 + int(rest.partition(".")[0])
        return self.depth + 1

    def is_backbone(self, parameter: str) -> bool:
        """Return whether `--freeze backbone` freezes a parameter."""
        return not parameter.startswith("head.")

    def _tokens(self, images: Tensor, kept: Tensor | None = None) -> Tensor:
        """Embed (B, 3, S, S) images as (B, N, D): class token, registers, patches.

        Args:
            images: normalised images.
            kept: (B, K) int64 indices of the patches that stay, sorted (patch dropout: Liu et al.
                2022, arXiv 2208.07220); None: all.
        """
        patches = self.patch_embed(images)
        count = patches.shape[0]
        prefix = [
            token.expand(count, -1, -1)
            for token in (self.cls_token, self.reg_token)
            if token is not None
        ]
        if self.pos_class_token:
            # Registers, if any, lie between and have no position.
            positions = self.pos_embed
            prefix[0] = prefix[0] + positions[:, :1]
            patches = patches + positions[:, 1:]
        else:
            patches = patches + self.pos_embed
        if kept is not None:
            patches = select_tokens(patches, kept)
        return self.norm_pre(self.pos_drop(torch.cat((*prefix, patches), dim=1)))

    def _run(self, block: Block, x: Tensor) -> Tensor:
        """Pass (B, N, D) tokens through a block."""
        return checkpointed(block, x) if self.grad_checkpointing else block(x)

    def checkpointed_forward(self, images: Tensor, kept: Tensor | None = None) -> ViTOutput:
        """Compute `self(images, kept)`, keeping only inputs and output for the backward pass."""
        return checkpointed(self, images, kept)


class VisionTransformer(Backbone):
    """A ViT classifier."""

    def __init__(self, config: ConfigDict, num_classes: int) -> None:
        super().__init__(config, num_blocks=config.depth)
        self.feature_kinds = feature_kinds(config)
        self.read_kinds = POOL_READS[config.pool]
        has_avg, has_map = "avg" in self.feature_kinds, "map" in self.feature_kinds
        # timm's names: `norm` before pooling, `fc_norm` after averaging.
        self.norm = nn.Identity() if has_avg else self._norm(config)
        self.fc_norm = self._norm(config) if has_avg else nn.Identity()
        self.attn_pool = AttentionPool(config) if has_map else None
        self.head = nn.Linear(len(self.read_kinds) * config.embed_dim, num_classes)
        self._init_weights()

    def _kinds(self, kinds: tuple[str, ...], images: Tensor, kept: Tensor | None) -> list[Tensor]:
        """Map (B, 3, S, S) images to their (B, D) features of each of some kinds."""
        x = self._tokens(images, kept)
        for block in self.blocks[:-1]:
            x = self._run(block, x)
        features = {}
        if "token" in kinds:
            # For the class token the last block does not compute the query, projection and MLP of
            # the others: the same numbers at 2/12 of a block. Also where others are read besides,
            # so that a class token has the same bits whatever it is computed for.
            features["token"] = self.norm(self.blocks[-1](x, query_tokens=1)[:, 0])
        if kinds != ("token",):
            x = self.norm(self._run(self.blocks[-1], x))
            features["mean"] = x[:, self.num_prefix_tokens :].mean(dim=1)
            features["avg"] = self.fc_norm(features["mean"])
            if "map" in kinds:
                features["map"] = self.attn_pool(x)
        return [features[kind] for kind in kinds]

    def forward(self, images: Tensor, kept: Tensor | None = None) -> ViTOutput:
        """Classify (B, 3, S, S) normalised float32 images: logits (B, C) and features.

        Of the patches only the `kept` ones are seen, (B, K) sorted indices; None: all. In place of
        images it takes features that were computed before: the head's (B, F * D) input.
        """
        features = images
        if images.ndim == 4:
            features = torch.cat(self._kinds(self.read_kinds, images, kept), dim=1)
        return ViTOutput(self.head(features), features)

    def all_features(self, images: Tensor) -> Tensor:
        """Map (B, 3, S, S) images to the (B, F, D) `feature_kinds`, all after the final norm."""
        return torch.stack(self._kinds(self.feature_kinds, images, None), dim=1)
