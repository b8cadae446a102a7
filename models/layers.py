"""The parts of a Vision Transformer (Dosovitskiy et al. 2021, arXiv 2010.11929, section 3.1).

Shapes: B batch, N tokens, Q query tokens (the first Q of N), H heads, D width, C classes.
Submodules carry timm's names, so that state dicts of that zoo fit without renaming.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """Cuts an image into square patches and projects each to a token."""

    def __init__(self, img_size: int, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        if img_size % patch_size:
            raise ValueError(f"img_size {img_size} is not a multiple of the patch, {patch_size}")
        self.num_patches = (img_size // patch_size) ** 2
        self.img_size = img_size
        self.proj = nn.Conv2d(3, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) images to (B, N, D) patch tokens in row-major order."""
        if images.shape[-2:] != (self.img_size, self.img_size):
            raise ValueError(f"images are {tuple(images.shape[-2:])}, built for {self.img_size}")
        return self.proj(images).flatten(2).transpose(1, 2)  # (B, N, D)


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2.2)."""

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is not a multiple of {num_heads} heads")
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def _split_heads(self, x: Tensor) -> Tensor:
        """(B, N, D) to (B, H, N, D/H)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor, query_tokens: int | None = None) -> Tensor:
        """(B, N, D) to (B, Q, D): what the first `query_tokens` tokens attend to; None: all N.

        Keys and values are always computed for all N tokens.
        """
        if query_tokens is None:
            q, k, v = self.qkv(x).chunk(3, dim=-1)  # (B, N, D) each
        else:
            # qkv stacks three D x D projections; the query's rows need only the first Q tokens.
            d = x.shape[-1]
            weight_q, weight_kv = self.qkv.weight.split((d, 2 * d))
            bias_q, bias_kv = self.qkv.bias.split((d, 2 * d))
            q = F.linear(x[:, :query_tokens], weight_q, bias_q)  # (B, Q, D)
            k, v = F.linear(x, weight_kv, bias_kv).chunk(2, dim=-1)  # (B, N, D) each
        q, k, v = self._split_heads(q), self._split_heads(k), self._split_heads(v)
        attended = F.scaled_dot_product_attention(q, k, v)  # (B, H, Q, D/H)
        return self.proj(attended.transpose(1, 2).flatten(2))  # (B, Q, D)


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between (section 3.1, equation 3)."""

    def __init__(self, embed_dim: int, mlp_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, mlp_dim)
        self.fc2 = nn.Linear(mlp_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm transformer encoder block (equations 2 and 3)."""

    def __init__(self, embed_dim: int, num_heads: int, mlp_dim: int, norm_eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.attn = Attention(embed_dim, num_heads)
        self.norm2 = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.mlp = Mlp(embed_dim, mlp_dim)

    def forward(self, x: Tensor, query_tokens: int | None = None) -> Tensor:
        """(B, N, D) to (B, Q, D): the first `query_tokens` tokens after the block; None: all N."""
        x = x[:, :query_tokens] + self.attn(self.norm1(x), query_tokens)  # (B, Q, D)
        return x + self.mlp(self.norm2(x))


def init_weights(module: nn.Module) -> None:
    """Initialise linear layers as Google's ViT does: Xavier uniform, MLP biases N(0, 1e-6).

    Source: google-research/vision_transformer, `models_vit.py`. The three projections stacked in
    `qkv` are drawn as the three D x D matrices they are.
    """
    if isinstance(module, Attention):
        for weight in module.qkv.weight.chunk(3):
            nn.init.xavier_uniform_(weight)
        nn.init.zeros_(module.qkv.bias)
        nn.init.xavier_uniform_(module.proj.weight)
        nn.init.zeros_(module.proj.bias)
    elif isinstance(module, Mlp):
        for linear in (module.fc1, module.fc2):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.normal_(linear.bias, std=1e-6)


# Standard deviation of a unit normal cut at two standard deviations on either side.
_TRUNCATED_STD = 0.87962566103423978


def init_patch_projection(proj: nn.Conv2d) -> None:
    """Initialise a patch projection as flax's `Conv` does: LeCun normal, bias zero.

    Source: `jax.nn.initializers.lecun_normal`, a normal cut at two standard deviations and scaled
    so that its variance is 1 / fan_in.
    """
    fan_in = proj.weight[0].numel()
    std = fan_in**-0.5 / _TRUNCATED_STD
    nn.init.trunc_normal_(proj.weight, std=std, a=-2 * std, b=2 * std)
    nn.init.zeros_(proj.bias)
