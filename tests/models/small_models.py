"""Small sizes, non-trivial weights and a record of operators for the tests of this folder."""

from collections.abc import Callable

import torch
from hypothesis import strategies as st
from ml_collections import ConfigDict
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.build import build_model
from models.configs import POOLS, get_config
from models.layers import ACTIVATIONS
from models.losses import Objective
from models.vit import Backbone

CROSS_ENTROPY = Objective()


def small_config(**fields: object) -> ConfigDict:
    """The `testing` config at 32 pixels, with other fields."""
    return get_config("testing", **{"img_size": 32, **fields})


def randomize(module: nn.Module, seed: int) -> None:
    """Move every parameter away from its initial value, the zero head and biases included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter += 0.1 * noise


def random_model(config: ConfigDict, num_classes: int, seed: int) -> Backbone:
    torch.manual_seed(seed)
    model = build_model(config, num_classes)
    randomize(model, seed)
    return model


def random_images(config: ConfigDict, batch: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, config.img_size, config.img_size, generator=generator)


SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def small_sizes(draw, min_depth=1) -> dict[str, int]:
    """Sizes of all shapes: few or many blocks, heads, patches that overlap or not; narrow MLPs."""
    heads, patch = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    stride = draw(st.integers(1, patch))
    # Pixels that no whole patch covers, which only overlapping patches may leave.
    rest = 0 if stride == patch else draw(st.integers(0, stride - 1))
    return {
        "patch_size": patch,
        "patch_stride": stride,
        "img_size": patch + stride * draw(st.integers(0, 3)) + rest,
        "embed_dim": heads * draw(st.sampled_from((2, 5, 8))),
        "num_heads": heads,
        "depth": draw(st.integers(min_depth, 3)),
        "mlp_dim": draw(st.integers(1, 40)),
    }


@st.composite
def small_configs(draw) -> ConfigDict:
    """Configs of plain models with any of the parts that a ViT may have."""
    class_token = draw(st.booleans())
    return small_config(
        **draw(small_sizes()),
        pool=draw(st.sampled_from([pool for pool in POOLS if class_token or "token" not in pool])),
        class_token=class_token,
        pos_class_token=draw(st.booleans()),
        num_registers=draw(st.integers(0, 2)),
        pre_norm=draw(st.booleans()),
        layer_scale=draw(st.sampled_from((None, 0.5))),
        activation=draw(st.sampled_from(sorted(ACTIVATIONS))),
        layer_norm_eps=draw(st.sampled_from((1e-6, 1e-5))),
    )


class Operators(TorchDispatchMode):
    """Records what runs in its `with` block, the backward pass included: (name, most numbers)."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(results) if isinstance(leaf, Tensor)]
        self.seen.append((func.overloadpacket.__name__, max(sizes, default=0)))
        return results

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self.seen}

    @property
    def unwanted(self) -> set[str]:
        """Those that read a value from the device, or add up in any order there."""
        indexing = ("gather", "scatter", "index", "embedding", "masked_select", "nonzero", "take")
        return {
            name
            for name in self.names
            if name == "_local_scalar_dense" or any(word in name for word in indexing)
        }


def loss_and_gradients(
    model: Backbone, images: Tensor, labels: Tensor, objective: Objective = CROSS_ENTROPY
) -> dict[str, Tensor]:
    """The loss of a training step, whose randomness is always the same, and all gradients."""
    torch.manual_seed(0)
    model.train().zero_grad()
    loss = objective(model(images), labels)
    loss.backward()
    return {"loss": loss.detach(), **{name: p.grad for name, p in model.named_parameters()}}


def kept_bytes(function: Callable[[], object]) -> int:
    """Bytes that autograd keeps of a computation for its backward pass, each memory once."""
    kept = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function()
    assert result is not None  # it has to live until here, or its memory would be used again
    return sum(kept.values())
