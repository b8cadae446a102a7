"""Take one optimizer step over micro-batches. Knows no writer and no file.

Shapes: B batch, C classes.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from utils.data.batches import Batch, Normalizer
from utils.processes import rank, world_size
from utils.training.ddp import Gather, gather_features, without_exchange
from utils.training.learner import Learner
from utils.training.meter import StepResult
from utils.training.step_loader import StepBatches

# (model output, labels, shares of the classes or None, share of the samples, gather) to a scalar
Loss = Callable[[NamedTuple, Tensor, Tensor | None, float, Gather | None], Tensor]


def _joined(outputs: Sequence[NamedTuple]) -> NamedTuple:
    """Return the outputs of micro-batches as the output of their batch; None fields stay None."""
    columns = zip(*outputs, strict=True)
    return type(outputs[0])(*(None if c[0] is None else torch.cat(c) for c in columns))


def train_step(
    learner: Learner,
    objective: Loss,
    step: StepBatches,
    normalize: Normalizer,
    max_grad_norm: float,
) -> StepResult | None:
    """Make one optimizer step over micro-batches; nothing is read back from the device.

    The loss is the mean over micro-batches, each weighing as many as it has samples. If the learner
    is joint, it is the loss of all micro-batches together, whatever their number: their outputs are
    kept, and each is computed again when its gradient arrives (Gao et al. 2021, arXiv 2101.06983,
    section 3.2).

    Args:
        learner: learner with its model in training mode.
        objective: loss of the samples that it is given together.
        step: micro-batches of the step.
        normalize: brings images to the device.
        max_grad_norm: L2 norm to which the gradient is clipped.

    Returns:
        What the step reports; None if it has no sample: then nothing has a gradient and moves.
    """
    optimizer = learner.optimizer
    if not step.micro_batches:
        optimizer.step()
        return None
    if learner.is_joint and len(step.micro_batches) > 1:
        loss, correct = _joint_pass(learner, objective, step, normalize)
    else:
        loss, correct = _accumulating_pass(learner, objective, step, normalize)
    grad_norm = torch.nn.utils.clip_grad_norm_(learner.model.parameters(), max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return StepResult(loss, correct, grad_norm, step.samples)


def _accumulating_pass(
    learner: Learner, objective: Loss, step: StepBatches, normalize: Normalizer
) -> tuple[Tensor, Tensor]:
    """Add up the gradients of the micro-batches; return loss and number of right samples."""
    loss, correct = 0.0, 0
    last = len(step.micro_batches) - 1
    for number, (batch, counts) in enumerate(zip(*step, strict=True)):
        # Gradients meet once a step, in the last backward pass.
        exchange = nullcontext() if number == last else without_exchange(learner.shared)
        with exchange:
            output = learner.shared(*_inputs(batch, normalize))
            own_loss, own_correct = _judge(objective, output, [batch], counts)
            own_loss = own_loss / (step.samples / sum(counts))
            own_loss.backward()
        loss = loss + own_loss.detach()
        correct = correct + own_correct
    return loss, correct


def _joint_pass(
    learner: Learner, objective: Loss, step: StepBatches, normalize: Normalizer
) -> tuple[Tensor, Tensor]:
    """Compute the gradient of the loss of all micro-batches together; return as the above.

    The last one is not computed again: its backward pass is the first, and through the shared
    model, so that the processes exchange their gradients once.
    """
    counts = [sum(column) for column in zip(*step.counts, strict=True)]
    mine = [by_rank[rank()] for by_rank in step.counts]
    batches = [batch for batch, count in zip(step.micro_batches, mine, strict=True) if count]
    *first, last = batches or step.micro_batches[:1]
    outputs = [learner.model.checkpointed_forward(*_inputs(batch, normalize)) for batch in first]
    output = _joined([*outputs, learner.shared(*_inputs(last, normalize))])
    loss, correct = _judge(objective, output, [*first, last], counts)
    loss.backward()
    return loss.detach(), correct


def _inputs(batch: Batch, normalize: Normalizer) -> tuple[Tensor, Tensor | None]:
    """Return what the model sees of a batch, on the device: images, and patches if not all."""
    kept = None if batch.kept is None else batch.kept.to(normalize.device)
    return normalize(batch.images), kept


def _judge(
    objective: Loss, output: NamedTuple, batches: Sequence[Batch], counts: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return the loss of the samples of all processes, and how many are right in this process.

    Args:
        objective: loss of the samples.
        output: model output for this process's samples.
        batches: batches of these samples.
        counts: samples by rank; if there are none here, `output` is that of a blank image.
    """
    device = output.logits.device
    labels = torch.cat([batch.labels for batch in batches]).to(device)
    targets = None
    if batches[0].targets is not None:
        targets = torch.cat([batch.targets for batch in batches]).to(device)
    own = counts[rank()]
    share = own * world_size() / sum(counts)
    loss = objective(output, labels, targets, share, gather_features(counts))
    right = (output.logits.detach().argmax(dim=1) == labels)[:own]
    return loss, right.sum()
