"""Build a learner and a train step on random images, for the benchmarks that time training."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from utils.training.learner import Learner

CLASSES = 102


def new_learner(model_type: str, img_size: int) -> "Learner":
    """Return a learner of a new model, with SGD and momentum at a constant learning rate."""
    import torch

    from models.build import build_model
    from models.configs import get_config
    from utils.training.learner import Learner

    model = build_model(get_config(model_type, img_size), CLASSES)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    return Learner(model, model, optimizer, schedule, None)


def random_step(img_size: int, batch_size: int) -> Callable[["Learner"], None]:
    """Return a train step on one batch of random images a process, always the same ones."""
    import torch

    from models.losses import Objective
    from models.pretrained.profiles import GOOGLE
    from utils.data.batches import Batch, Normalizer
    from utils.processes import world_size
    from utils.training.step_loader import StepBatches
    from utils.training.train_step import train_step

    images = torch.randint(0, 256, (batch_size, 3, img_size, img_size), dtype=torch.uint8)
    own = torch.arange(batch_size)
    batch = Batch(images, own % CLASSES, own, torch.zeros(batch_size, 2))
    batches = StepBatches([batch], [[batch_size] * world_size()])
    normalize = Normalizer(GOOGLE.normalization, torch.device("cpu"))

    def step(learner: "Learner") -> None:
        train_step(learner, Objective(), batches, normalize, 1.0)

    return step
