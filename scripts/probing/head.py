"""Put fitted linear heads onto the frozen model; evaluate and save it as a whole."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from models.build import rebuild_model
from models.configs import POOL_READS
from models.pretrained.load import HEAD_KEYS
from models.vit import Backbone
from utils.data.splits import Split
from utils.data.subsets import warn_of_trained
from utils.evaluation.evaluate import Evaluation, whole_evaluation
from utils.evaluation.features import Features
from utils.evaluation.metrics import summarize
from utils.probe.fits import Linear
from utils.probe.methods import BOTH, FIRST, PATCHES, Pool, Row
from utils.run.checkpoint import checkpoint_id, save_checkpoint

if TYPE_CHECKING:
    from scripts.probing.plan import Plan


def pool_of(model: Backbone, features: str) -> str:
    """Return the pool whose head reads the features of a name; of a single kind there is one."""
    kinds = model.feature_kinds
    if kinds == ("parts",):
        return "token"  # after the part block
    read = {FIRST: kinds[:1], PATCHES: kinds[1:], BOTH: kinds}[features]
    return next(pool for pool, reads in POOL_READS.items() if reads == read)


def with_head(
    model: Backbone, config: Mapping[str, Any], classes: Sequence[str], features: str, head: Linear
) -> tuple[dict[str, Any], Backbone]:
    """Return the config and the model that reads these features by this head, in float32.

    Args:
        model: model that the features are of.
        config: its model config.
        classes: class names of the head.
        features: name of the features.
        head: the fitted head.
    """
    pool = pool_of(model, features)
    state = {key: value.cpu() for key, value in model.state_dict().items() if key not in HEAD_KEYS}
    if pool == "norm_avg":
        state = {key: value for key, value in state.items() if not key.startswith("attn_pool.")}
    state["head.weight"], state["head.bias"] = (
        torch.from_numpy(each.astype(np.float32)) for each in (head.weight, head.bias)
    )
    config = {**config, "pool": pool}
    return config, rebuild_model(config, classes, state)


@torch.no_grad()
def logits_of(model: Backbone, features: np.ndarray) -> np.ndarray:
    """Return the (S, C) float32 logits of (S, D) features that the head reads."""
    return model.head(torch.tensor(features)).numpy()


class HeadKeeper:
    """Evaluate heads on the features of the evaluated split, and save them as whole models."""

    def __init__(self, plan: "Plan", features: Features, num_skipped: int) -> None:
        self.plan, self.features, self.num_skipped = plan, features, num_skipped

    def save(
        self, path: Path, head: Linear, row: Row, fitted_on: Sequence[Split]
    ) -> tuple[Evaluation, dict[str, Any]]:
        """Save the model with this head; return its evaluation and metrics, as eval.py has them."""
        plan, seen, split = self.plan, self.features, self.plan.data.eval
        config = plan.config
        x, labels = Pool(seen.values, seen.labels).read(row.features)
        classes = plan.data.train.classes
        model_config, model = with_head(
            plan.model, config.model.to_dict(), classes, row.features, head
        )
        evaluation = Evaluation(logits_of(model, x), labels, None, seen.positions)
        evaluation = whole_evaluation([evaluation], len(split), self.num_skipped)
        weights = model.state_dict()
        metrics = {
            "split": split.name,
            "selected_on": plan.stamp["selected_on"],
            "step": 0,
            "tta": "none",
            **summarize(evaluation.logits, evaluation.labels),
            "skipped_images": self.num_skipped,
            "checkpoint_id": checkpoint_id(weights),
            "trained_on_images": plan.count_known(fitted_on),
        }
        warn_of_trained(metrics["trained_on_images"], metrics["samples"])
        about = plan.about(fitted_on) | {"model_config": model_config}
        save_checkpoint(path, about, metrics, weights)
        return evaluation, metrics
