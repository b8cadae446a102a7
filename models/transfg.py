"""Define TransFG: a ViT whose last block sees only the patches that attention selected.

He et al., AAAI 2022 (arXiv 2103.07976), section 3.2. Shapes: B batch, N tokens (class token,
registers, P patches), H heads, D width, C classes, S image side in pixels.

The paper selects by attention rollout: it multiplies the attention matrices of all blocks but the
part block, A_{L-2} ... A_0, and reads the class token's row of the product. Only that row is
computed here, as a chain of a row vector and matrices from the last block down, each matrix in
slices, so that no N x N matrix is kept and no two are multiplied. The paper's code computes the
full product inside autograd, though no gradient passes an argmax.
"""

from collections.abc import Iterable, Iterator

import torch
from ml_collections import ConfigDict
from torch import Tensor, nn

from models.activation_checkpointing import checkpointed
from models.configs import grid_side
from models.layers import Block, QueriesKeys, select_tokens
from models.vit import Backbone, ViTOutput

# Bound in bytes of the transient attention weights: one slice of queries (at least one) of one
# block, for all heads and samples of the batch. They exist twice, before and after the softmax. On
# the CPU what fits the cache is fastest (research.md); an accelerator wants few large kernels.
MAX_SLICE_BYTES = {"cpu": 6 * 2**20}
MAX_SLICE_BYTES_ELSEWHERE = 64 * 2**20


def _row_times_attention(
    row: Tensor, queries: Tensor, keys: Tensor, max_slice_bytes: int
) -> Tensor:
    """Multiply a (B*H, 1, N) row by the attention matrix of (B*H, N, D/H) queries and keys."""
    num_tokens = keys.shape[1]
    step = min(num_tokens, max(1, max_slice_bytes // (row.numel() * row.element_size())))
    # Memory is allocated once a block: new pages for each slice would cost as much as the softmax.
    scores, weights = (queries.new_empty(len(keys) * step * num_tokens) for _ in range(2))
    product = torch.zeros_like(row)
    scaled, keys = queries * queries.shape[-1] ** -0.5, keys.transpose(1, 2)
    for part, factor in zip(scaled.split(step, dim=1), row.split(step, dim=2), strict=True):
        shape = (len(keys), part.shape[1], num_tokens)
        part_scores, part_weights = (
            memory[: part.shape[1] * len(keys) * num_tokens].view(shape)
            for memory in (scores, weights)
        )
        torch.bmm(part, keys, out=part_scores)
        torch.softmax(part_scores, dim=-1, out=part_weights)
        product.baddbmm_(factor, part_weights)
    return product


@torch.no_grad()
def class_token_rollout(
    layers: Iterable[QueriesKeys], max_slice_bytes: int | None = None
) -> Tensor:
    """Compute the class token's row of the attention rollout A_{L-2} ... A_0.

    Args:
        layers: queries and keys of the blocks, last block first; (B, H, N, D/H) each.
        max_slice_bytes: bound in bytes of the attention weights that exist at a time, twice; None:
            the device's.

    Returns:
        (B, H, N), rows summing to 1: the share of each token in what reaches the class token.
    """
    row = None
    for layer in layers:
        samples = layer.queries.shape[0]
        queries, keys = (part.flatten(0, 1) for part in layer)  # (B*H, N, D/H)
        if row is None:  # of the last block's matrix only the class token's row is needed
            scores = torch.bmm(queries[:, :1], keys.transpose(1, 2)) * keys.shape[-1] ** -0.5
            row = scores.softmax(dim=-1)  # (B*H, 1, N)
            if max_slice_bytes is None:
                max_slice_bytes = MAX_SLICE_BYTES.get(row.device.type, MAX_SLICE_BYTES_ELSEWHERE)
        else:
            row = _row_times_attention(row, queries, keys, max_slice_bytes)
    return row.squeeze(1).unflatten(0, (samples, -1))


def patch_centers(config: ConfigDict) -> Tensor:
    """Return x and y of each patch's center in [0, 1] of the input square, (P, 2) float32."""
    numbers = torch.arange(grid_side(config), dtype=torch.float64)
    middles = (numbers * config.patch_stride + config.patch_size / 2) / config.img_size
    y, x = torch.meshgrid(middles, middles, indexing="ij")
    return torch.stack((x.flatten(), y.flatten()), dim=1).float()


class TransFG(Backbone):
    """A ViT with part selection; `blocks` are all blocks but the last, which is `part_block`."""

    feature_kinds = ("parts",)

    def __init__(self, config: ConfigDict, num_classes: int) -> None:
        super().__init__(config, num_blocks=config.depth - 1)
        self.part_block = Block(config, config.drop_path)
        self.part_norm = self._norm(config)
        self.head = nn.Linear(config.embed_dim, num_classes)
        # Not a weight, so it is not saved.
        self.register_buffer("patch_centers", patch_centers(config), persistent=False)  # (P, 2)
        self._init_weights()

    def layer_of(self, parameter: str) -> int:
        """Return the layer of a parameter as `Backbone` does; the part block is the last block."""
        is_part_block = parameter.startswith("part_block.")
        return self.depth if is_part_block else super().layer_of(parameter)

    def is_backbone(self, parameter: str) -> bool:
        """Return whether `--freeze backbone` freezes a parameter: all before the part block."""
        return not parameter.startswith(("part_block.", "part_norm.", "head."))

    def _through_blocks(self, x: Tensor) -> tuple[Tensor, Iterator[QueriesKeys]]:
        """Pass (B, N, D) tokens through the blocks; return their queries and keys, last first."""
        if self.grad_checkpointing:
            # A block's input is kept anyway; queries and keys are computed from it once more.
            inputs = []
            for block in self.blocks:
                inputs.append((block, x))
                x, _ = checkpointed(block.with_queries_keys, x)
            return x, (block.queries_keys(tokens) for block, tokens in reversed(inputs))
        layers = []
        for block in self.blocks:
            x, queries_keys = block.with_queries_keys(x)
            layers.append(queries_keys)
        return x, reversed(layers)

    def forward(self, images: Tensor, kept: Tensor | None = None) -> ViTOutput:
        """Classify (B, 3, S, S) normalised float32 images: logits, features and selected parts.

        Of the patches only the `kept` ones are seen, (B, K) sorted indices; None: all.
        """
        x, layers = self._through_blocks(self._tokens(images, kept))  # (B, N, D)
        row = class_token_rollout(layers)[:, :, self.num_prefix_tokens :]  # (B, H, P)
        del layers  # before the part block and the backward pass need memory
        chosen = row.argmax(dim=-1)  # (B, H)
        parts = select_tokens(x[:, self.num_prefix_tokens :], chosen)  # (B, H, D)
        centers = self.patch_centers if kept is None else select_tokens(self.patch_centers, kept)
        x = self.part_block(torch.cat((x[:, :1], parts), dim=1), query_tokens=1)
        features = self.part_norm(x[:, 0])  # (B, D)
        return ViTOutput(self.head(features), features, select_tokens(centers, chosen))

    def all_features(self, images: Tensor) -> Tensor:
        """Map (B, 3, S, S) images to (B, 1, D): what the head reads."""
        return self(images).features[:, None]
