"""Weights from elsewhere into one of our models, with an account of what went where."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

# The only keys that may be absent or of another shape: a new task has a new head.
HEAD_KEYS = frozenset({"head.weight", "head.bias"})


class LoadReport(NamedTuple):
    """Keys by fate: taken over, left at their initial values, not used."""

    loaded: tuple[str, ...]
    new: tuple[str, ...]
    unused: tuple[str, ...]


def load_pretrained(
    model: nn.Module, state_dict: Mapping[str, Tensor], keep_head: bool
) -> LoadReport:
    """Copy `state_dict` (our key names) into `model`; the head only if `keep_head`.

    Args:
        model: of any size; its parameters are overwritten in place.
        state_dict: CPU tensors.
        keep_head: the classes are the same, in the same order, so the head means the same.

    Raises:
        ValueError: keys missing besides the head's, keys the model does not have, or shapes that
            differ; the message lists them.
    """
    own = model.state_dict()
    skipped = frozenset() if keep_head else HEAD_KEYS
    given = {key: value for key, value in state_dict.items() if key not in skipped}
    expected = own.keys() - skipped
    problems = [f"missing {key}" for key in sorted(expected - given.keys())]
    problems += [f"unexpected {key}" for key in sorted(given.keys() - expected)]
    problems += [
        f"{key} is {tuple(given[key].shape)}, not {tuple(own[key].shape)}"
        for key in sorted(expected & given.keys())
        if given[key].shape != own[key].shape
    ]
    if problems:
        raise ValueError(", ".join(problems))
    model.load_state_dict({**own, **given})
    return LoadReport(
        loaded=tuple(sorted(given)),
        new=tuple(sorted(skipped)),
        unused=tuple(sorted(state_dict.keys() & skipped)),
    )
