"""Define the layers of a Vision Transformer (Dosovitskiy et al. 2021, arXiv 2010.11929).

Section and equation numbers are that paper's where no other is named.

Shapes: B batch, N tokens, Q query tokens (the first Q of N), H heads, D width, S image side.
Submodules have timm's names, so that timm's state dicts fit without renaming.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from ml_collections import ConfigDict
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from models.activation_checkpointing import checkpointed


def quick_gelu(x: Tensor) -> Tensor:
    """Return x * sigmoid(1.702 x), the GELU of OpenAI's CLIP (Hendrycks & Gimpel 2016)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
}


class PatchEmbed(nn.Module):
    """Cut an image into square patches, overlapping if the stride is smaller, and project each."""

    def __init__(self, config: ConfigDict) -> None:
        super().__init__()
        patch, stride, bias = config.patch_size, config.patch_stride, not config.pre_norm
        self.img_size = config.img_size
        self.proj = nn.Conv2d(3, config.embed_dim, patch, stride, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        """Turn (B, 3, S, S) images into (B, N, D) patch tokens in row-major order."""
        if images.shape[-2:] != (self.img_size, self.img_size):
            raise ValueError(f"images are {tuple(images.shape[-2:])}, built for {self.img_size}")
        return self.proj(images).flatten(2).transpose(1, 2)  # (B, N, D)


def select_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """Return the tokens at (B, K) indices: (B, K, D) of (B, N, D), or of (N, D) that all share."""
    # One-hot rows times tokens and not tokens.gather: gather's backward adds with atomics on MPS,
    # in any order (pytorch #161029); this is deterministic on every device. Comparing and not
    # F.one_hot, which scatters and on the CPU reads its input to check the range.
    numbers = torch.arange(tokens.shape[-2], device=tokens.device)
    return (indices.unsqueeze(-1) == numbers).to(tokens.dtype) @ tokens


class QueriesKeys(NamedTuple):
    """Queries and keys of an attention, (B, H, N, D/H) each."""

    queries: Tensor
    keys: Tensor


def _split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Reshape (B, N, D) to (B, H, N, D/H)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2.2)."""

    def __init__(self, config: ConfigDict) -> None:
        super().__init__()
        d = config.embed_dim
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(d, 3 * d)
        self.proj = nn.Linear(d, d)
        self.proj_drop = nn.Dropout(config.dropout)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend from (B, H, Q, D/H) queries to (B, H, N, D/H) keys and values; (B, Q, D)."""
        # No dropout inside: SDPA raises on MPS for dropout_p > 0 (PR #184126).
        attended = F.scaled_dot_product_attention(q, k, v)  # (B, H, Q, D/H)
        return self.proj_drop(self.proj(attended.transpose(1, 2).flatten(2)))  # (B, Q, D)

    def forward(self, x: Tensor, query_tokens: int | None = None) -> Tensor:
        """Attend from the first `query_tokens` tokens (None: all N) to all tokens.

        Args:
            x: tokens, (B, N, D).
            query_tokens: number of tokens Q that attend.

        Returns:
            (B, Q, D).
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
        return self._attend(*(_split_heads(x, self.num_heads) for x in (q, k, v)))

    def _queries_keys(self, x: Tensor, weight: Tensor, bias: Tensor) -> QueriesKeys:
        """Project (B, N, D) by the first two thirds of `qkv`."""
        # Not views of one tensor with the values, which must not live as long as these.
        q, k = F.linear(x, weight, bias).chunk(2, dim=-1)
        return QueriesKeys(_split_heads(q, self.num_heads), _split_heads(k, self.num_heads))

    def queries_keys(self, x: Tensor) -> QueriesKeys:
        """Return the queries and keys of all tokens (B, N, D)."""
        d = x.shape[-1]
        return self._queries_keys(x, self.qkv.weight[: 2 * d], self.qkv.bias[: 2 * d])

    def with_queries_keys(self, x: Tensor) -> tuple[Tensor, QueriesKeys]:
        """Attend from all tokens, (B, N, D) to (B, N, D), and return the queries and keys too."""
        # One split of the weights and not two slices: its gradient is one concatenation.
        d = x.shape[-1]
        weight_qk, weight_v = self.qkv.weight.split((2 * d, d))
        bias_qk, bias_v = self.qkv.bias.split((2 * d, d))
        q, k = self._queries_keys(x, weight_qk, bias_qk)
        v = _split_heads(F.linear(x, weight_v, bias_v), self.num_heads)
        attended = self._attend(q, k, v)
        return attended, QueriesKeys(q.detach(), k.detach())


class AttentionPool(nn.Module):
    """Pool all tokens by one learned query (Zhai et al. 2022, arXiv 2106.04560, section 3.3)."""

    def __init__(self, config: ConfigDict) -> None:
        super().__init__()
        d = config.embed_dim
        self.num_heads = config.num_heads
        self.latent = nn.Parameter(torch.empty(1, 1, d))
        self.q = nn.Linear(d, d)
        self.kv = nn.Linear(d, 2 * d)
        self.proj = nn.Linear(d, d)
        self.norm = nn.LayerNorm(d, eps=config.layer_norm_eps)
        self.mlp = Mlp(config)
        nn.init.trunc_normal_(self.latent, std=d**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Pool (B, N, D) tokens to (B, D)."""
        q = self.q(self.latent.expand(x.shape[0], -1, -1))  # (B, 1, D)
        k, v = self.kv(x).chunk(2, dim=-1)  # (B, N, D) each
        q, k, v = (_split_heads(part, self.num_heads) for part in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        pooled = self.proj(attended)
        return (pooled + self.mlp(self.norm(pooled)))[:, 0]  # (B, D)


class Mlp(nn.Module):
    """Two linear layers with an activation between (section 3.1, equation 3), for each token."""

    def __init__(self, config: ConfigDict, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.embed_dim, config.mlp_dim)
        self.act = ACTIVATIONS[config.activation]
        self.fc2 = nn.Linear(config.mlp_dim, config.embed_dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, D) to (B, N, D)."""
        # Of the two widest tensors only the first is kept: the activation is computed again. That
        # saves a quarter of a block's memory at no time that could be measured (research.md of
        # 002), since fc2 is not computed again.
        return checkpointed(self._activate_and_project, self.fc1(x))

    def _activate_and_project(self, hidden: Tensor) -> Tensor:
        """Map (B, N, mlp_dim) to (B, N, D)."""
        return self.drop(self.fc2(self.drop(self.act(hidden))))


class LayerScale(nn.Module):
    """A learned factor for each channel (Touvron et al. 2021, arXiv 2103.17239, equation 4)."""

    def __init__(self, embed_dim: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((embed_dim,), initial))

    def forward(self, x: Tensor) -> Tensor:
        """Scale (B, N, D) tokens."""
        return x * self.gamma


class Block(nn.Module):
    """A pre-norm transformer encoder block (equations 2 and 3)."""

    def __init__(self, config: ConfigDict, drop_path: float = 0.0) -> None:
        super().__init__()
        d, eps, scale = config.embed_dim, config.layer_norm_eps, config.layer_scale
        self.norm1 = nn.LayerNorm(d, eps=eps)
        self.attn = Attention(config)
        self.ls1 = nn.Identity() if scale is None else LayerScale(d, scale)
        self.norm2 = nn.LayerNorm(d, eps=eps)
        self.mlp = Mlp(config, config.dropout)
        self.ls2 = nn.Identity() if scale is None else LayerScale(d, scale)
        # Stochastic depth (Huang et al. 2016, arXiv 1603.09382): drops a branch for whole samples.
        self.drop_path = StochasticDepth(drop_path, "row") if drop_path else nn.Identity()

    def _add_attended(self, x: Tensor, attended: Tensor) -> Tensor:
        """Add the attention's output to its (B, Q, D) tokens (equation 2)."""
        return x + self.drop_path(self.ls1(attended))

    def _add_mlp(self, x: Tensor) -> Tensor:
        """Add the MLP's output to its (B, Q, D) tokens (equation 3)."""
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))

    def forward(self, x: Tensor, query_tokens: int | None = None) -> Tensor:
        """Return the first `query_tokens` tokens (None: all N) after the block.

        Args:
            x: tokens, (B, N, D).
            query_tokens: number of tokens Q to compute.

        Returns:
            (B, Q, D).
        """
        attended = self.attn(self.norm1(x), query_tokens)
        return self._add_mlp(self._add_attended(x[:, :query_tokens], attended))

    def queries_keys(self, x: Tensor) -> QueriesKeys:
        """Return only the queries and keys of the block's attention over tokens (B, N, D)."""
        return self.attn.queries_keys(self.norm1(x))

    def with_queries_keys(self, x: Tensor) -> tuple[Tensor, QueriesKeys]:
        """Return all tokens (B, N, D) after the block, and queries and keys without gradient."""
        attended, queries_keys = self.attn.with_queries_keys(self.norm1(x))
        x = self._add_attended(x, attended)
        del attended  # the MLP is where a block needs the most memory
        return self._add_mlp(x), queries_keys


def init_weights(module: nn.Module) -> None:
    """Initialise linear layers as Google's ViT does: Xavier uniform, MLP biases N(0, 1e-6).

    Source: google-research/vision_transformer, `models_vit.py`. Each D x D projection that is
    stacked in `qkv` and `kv` is drawn by itself.
    """
    if isinstance(module, Attention | AttentionPool):
        linears = [child for child in module.children() if isinstance(child, nn.Linear)]
        for linear in linears:
            for weight in linear.weight.split(linear.in_features):
                nn.init.xavier_uniform_(weight)
            nn.init.zeros_(linear.bias)
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
    if proj.bias is not None:
        nn.init.zeros_(proj.bias)
