"""The models that `benchmark.py model` runs side by side. Needs requirements-dev.txt.

Ours, those of timm, transformers and torchvision, and TransFG as its paper's code computes it
(`tests/models/paper_transfg.py`).
"""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from scripts.dev.benchmarks.timing import Action

if TYPE_CHECKING:
    from torch import Tensor, nn

REPO = Path(__file__).resolve().parents[3]
CLASSES = 102
MODEL_TYPE = "ViT-B_16"  # ours; the libraries' are built with as many blocks
LIBRARIES_DEPTH = 12
TRAIN, EVAL = "train", "eval"


class Contender(NamedTuple):
    """A model as the benchmark runs it."""

    train_step: Action  # forward, loss, backward, SGD with momentum
    eval_step: Action  # forward without gradients
    # As train_step, but the gradients stay, so that they are not among what a step takes.
    keeping_step: Action

    def actions(self) -> dict[str, Action]:
        """The steps by name."""
        return {TRAIN: self.train_step, EVAL: self.eval_step}


def _contender(
    forward: Callable[["Tensor"], Any],
    loss: Callable[[Any], "Tensor"],
    parameters: Iterable["nn.Parameter"],
    images: "Tensor",
    set_training: Callable[[bool], object] = lambda is_training: None,
) -> Contender:
    import torch

    optimizer = torch.optim.SGD(parameters, lr=1e-4, momentum=0.9, fused=True)

    def train_step(keep_gradients: bool = False) -> None:
        set_training(True)
        loss(forward(images)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=not keep_gradients)

    def eval_step() -> None:
        set_training(False)
        with torch.no_grad():
            forward(images)

    return Contender(train_step, eval_step, lambda: train_step(keep_gradients=True))


class Contenders:
    """Builds the models for one image size and batch size, all on the same images."""

    def __init__(self, img_size: int, batch_size: int) -> None:
        import torch

        torch.manual_seed(0)
        self.img_size = img_size
        self.images = torch.randn(batch_size, 3, img_size, img_size)
        self.labels = torch.randint(CLASSES, (batch_size,))

    def _cross_entropy(self, logits: "Tensor") -> "Tensor":
        import torch.nn.functional as F

        return F.cross_entropy(logits, self.labels)

    def _library(self, model: "nn.Module", logits: Callable[[Any], "Tensor"]) -> Contender:
        return _contender(
            lambda images: logits(model(images)),
            self._cross_entropy,
            model.parameters(),
            self.images,
            model.train,
        )

    def timm(self) -> Contender:
        """timm's ViT-B/16."""
        import timm

        model = timm.create_model(
            "vit_base_patch16_224",
            img_size=self.img_size,
            num_classes=CLASSES,
            depth=LIBRARIES_DEPTH,
        )
        return self._library(model, lambda logits: logits)

    def transformers(self) -> Contender:
        """Hugging Face's ViT-B/16."""
        import transformers

        config = transformers.ViTConfig(
            image_size=self.img_size, num_labels=CLASSES, num_hidden_layers=LIBRARIES_DEPTH
        )
        model = transformers.ViTForImageClassification(config)
        return self._library(model, lambda output: output.logits)

    def torchvision(self) -> Contender:
        """torchvision's ViT-B/16."""
        from torchvision.models import VisionTransformer

        model = VisionTransformer(
            self.img_size,
            patch_size=16,
            num_layers=LIBRARIES_DEPTH,
            num_heads=12,
            hidden_dim=768,
            mlp_dim=3072,
            num_classes=CLASSES,
        )
        return self._library(model, lambda logits: logits)

    def ours(self, head: str, grad_checkpointing: bool = False) -> Contender:
        """Our ViT-B_16, with the loss that `train.py` gives it."""
        from models.build import build_model
        from models.configs import get_config
        from models.losses import Objective

        model = build_model(get_config(MODEL_TYPE, self.img_size, head=head), CLASSES)
        model.grad_checkpointing = grad_checkpointing
        objective = Objective(contrastive_weight=1.0 if head == "parts" else 0.0)
        return _contender(
            model,
            lambda output: objective(output, self.labels),
            model.parameters(),
            self.images,
            model.train,
        )

    def naive(self) -> Contender:
        """TransFG ViT-B/16 as the paper's code computes it, from our initial weights."""
        import torch

        sys.path.append(str(REPO / "tests" / "models"))
        import paper_transfg

        from models.build import build_model
        from models.configs import get_config
        from models.losses import Objective
        from models.vit import ViTOutput

        config = get_config(MODEL_TYPE, self.img_size, head="parts")
        ours = build_model(config, CLASSES).state_dict()
        weights = {
            name: torch.nn.Parameter(value.clone())
            for name, value in paper_transfg.in_their_names(ours).items()
        }
        objective = Objective(contrastive_weight=1.0)

        def forward(images: "Tensor") -> ViTOutput:
            logits, features, _ = paper_transfg.transfg(
                weights, images, config.num_heads, config.patch_stride
            )
            return ViTOutput(logits, features)

        return _contender(
            forward, lambda output: objective(output, self.labels), weights.values(), self.images
        )
