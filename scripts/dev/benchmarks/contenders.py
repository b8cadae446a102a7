"""Build the models that `benchmark.py model` runs side by side. Needs requirements-dev.txt.

They are ours, those of timm, transformers and torchvision, and TransFG as its paper's code computes
it (`tests/models/paper_transfg.py`).
"""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.dev.benchmarks.timing import Action

if TYPE_CHECKING:
    from torch import Tensor, nn

REPO = Path(__file__).resolve().parents[3]
CLASSES = 102
MODEL_TYPE = "ViT-B_16"  # ours; the libraries' are built with as many blocks
LIBRARIES_DEPTH = 12
TRAIN, EVAL = "train", "eval"


class Contender:
    """A model with its optimizer, SGD with momentum, on one batch of images."""

    def __init__(
        self,
        forward: Callable[["Tensor"], Any],
        loss: Callable[[Any], "Tensor"],
        parameters: Iterable["nn.Parameter"],
        images: "Tensor",
        set_training: Callable[[bool], object] = lambda is_training: None,
    ) -> None:
        """Build the optimizer.

        Args:
            forward: function from images to output.
            loss: function from output to a scalar.
            parameters: parameters to train.
            images: (B, 3, H, W) float32.
            set_training: function that switches dropout and the like on or off.
        """
        import torch

        self.forward, self.loss, self.images = forward, loss, images
        self.set_training = set_training
        self.optimizer = torch.optim.SGD(parameters, lr=1e-4, momentum=0.9, fused=True)

    def train_step(self, keep_gradients: bool = False) -> None:
        """Train one step; gradients that are kept are not among what the next step allocates."""
        self.set_training(True)
        self.loss(self.forward(self.images)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=not keep_gradients)

    def eval_step(self) -> None:
        """Compute the output without gradients."""
        import torch

        self.set_training(False)
        with torch.no_grad():
            self.forward(self.images)

    def action(self, step: str) -> Action:
        """Return the step called TRAIN or EVAL."""
        return {TRAIN: self.train_step, EVAL: self.eval_step}[step]


class Contenders:
    """Builds the models for one image size and batch size, all on the same images."""

    def __init__(self, img_size: int, batch_size: int) -> None:
        import torch

        torch.manual_seed(0)
        self.img_size = img_size
        self.images = torch.randn(batch_size, 3, img_size, img_size)
        self.labels = torch.randint(CLASSES, (batch_size,))

    def _library(
        self, model: "nn.Module", logits: Callable[[Any], "Tensor"] = lambda output: output
    ) -> Contender:
        import torch.nn.functional as F

        return Contender(
            model,
            lambda output: F.cross_entropy(logits(output), self.labels),
            model.parameters(),
            self.images,
            model.train,
        )

    def timm(self) -> Contender:
        """Return timm's ViT-B/16."""
        import timm

        model = timm.create_model(
            "vit_base_patch16_224",
            img_size=self.img_size,
            num_classes=CLASSES,
            depth=LIBRARIES_DEPTH,
        )
        return self._library(model)

    def transformers(self) -> Contender:
        """Return Hugging Face's ViT-B/16."""
        import transformers

        config = transformers.ViTConfig(
            image_size=self.img_size, num_labels=CLASSES, num_hidden_layers=LIBRARIES_DEPTH
        )
        model = transformers.ViTForImageClassification(config)
        return self._library(model, lambda output: output.logits)

    def torchvision(self) -> Contender:
        """Return torchvision's ViT-B/16."""
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
        return self._library(model)

    def ours(self, head: str, grad_checkpointing: bool = False) -> Contender:
        """Return our ViT-B_16, with the loss that `train.py` gives it."""
        from models.build import build_model
        from models.configs import get_config
        from models.losses import Objective

        model = build_model(get_config(MODEL_TYPE, self.img_size, head=head), CLASSES)
        model.grad_checkpointing = grad_checkpointing
        objective = Objective(contrastive_weight=1.0 if head == "parts" else 0.0)
        return Contender(
            model,
            lambda output: objective(output, self.labels),
            model.parameters(),
            self.images,
            model.train,
        )

    def naive(self) -> Contender:
        """Return TransFG ViT-B/16 as the paper's code computes it, from our initial weights."""
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

        return Contender(
            forward, lambda output: objective(output, self.labels), weights.values(), self.images
        )
