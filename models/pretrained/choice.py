"""Find the models in a weight file, choose one, and give its tensors the names that ours have."""

import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from models.pretrained.formats import WeightsError
from models.pretrained.layouts import LAYOUTS, Layout
from models.pretrained.profiles import Profile

MAX_MODELS = 64  # in one file; finding them takes time by models and tensors
# The tensors without which no ViT of ours is whole.
NEEDED = ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight")
# Words that tell a copy whose weights were averaged; the same model may be there as trained.
_AVERAGED = {"ema", "swa", "averaged", "average", "avg"}
_STUDENT_OF = {"teacher": "student", "target": "online"}  # DINO and iBOT; BYOL


class Named(NamedTuple):
    """The tensors of a file under our names."""

    layout: str
    profile: Profile  # usual for the layout
    tensors: dict[str, Tensor]  # shapes as in our models, types as in the file
    unused: tuple[str, ...]  # names in the file that have no place in our models
    num_heads: int | None  # None: the layout does not say it
    names: Mapping[str, str]  # our names of what could be there, to those in the file
    notes: tuple[str, ...] = ()  # which other models the file holds


class _Model(NamedTuple):
    """A model in a file."""

    layout: Layout
    prefix: str  # before all its names in the file
    root: str  # after it before all names but the head's
    names: dict[str, str]  # bare names, to those in the file
    is_averaged: bool

    @property
    def place(self) -> str:
        """Where it is in the file, as --pretrained_key names it."""
        return self.prefix.rstrip("./") or "."

    @property
    def words(self) -> set[str]:
        """The words in its place."""
        return set(re.split(r"[./_\-]", self.place.lower()))

    @property
    def is_whole(self) -> bool:
        """Whether the tensors are there from which an architecture is read."""
        return set(NEEDED) <= {self.layout.our_name(name) for name in self.names}

    def is_at(self, key: str) -> bool:
        """Return whether `key` names its place, or one around it."""
        return self.place == key or self.place.startswith((f"{key}.", f"{key}/"))

    def is_teacher_of(self, other: "_Model") -> bool:
        """Return whether `other` was trained to follow this one, an average of it."""
        return any(t in self.words and s in other.words for t, s in _STUDENT_OF.items())

    def is_average_of(self, other: "_Model") -> bool:
        """Return whether this is the averaged copy of `other`."""
        return self.is_averaged and not other.is_averaged


def _unchunked(names: dict[str, str]) -> dict[str, str]:
    """Number blocks that are kept in chunks (`blocks.0.3.`) as if they were not.

    DINOv2 numbers them through, other code in each chunk anew.
    """
    pattern = re.compile(r"blocks\.(\d{1,6})\.(\d{1,6})\.")
    places = {name: match for name in names if (match := pattern.match(name))}
    pairs = sorted({(int(match[1]), int(match[2])) for match in places.values()})
    inner = [number for _, number in pairs]
    is_through = len(set(inner)) == len(inner)
    numbers = dict(zip(pairs, inner if is_through else range(len(pairs)), strict=True))
    renamed = {}
    for name, theirs in names.items():
        if match := places.get(name):
            name = f"blocks.{numbers[int(match[1]), int(match[2])]}.{name[match.end() :]}"
        renamed[name] = theirs
    return renamed


def _find(tensors: Mapping[str, Tensor]) -> list[_Model]:
    """Find the models under whatever prefixes; of two layouts at one place the first counts."""
    places: dict[str, tuple[Layout, str]] = {}
    for layout in LAYOUTS:
        marked = layout.marked()
        for name in tensors:
            if match := marked.fullmatch(name):
                places.setdefault(match[1], (layout, match[2]))
    if not places:
        known = ", ".join(layout.name for layout in LAYOUTS)
        some = ", ".join(sorted(tensors)[:3])
        raise WeightsError(f"its layout is none of {known}; it holds {some}, ...")
    if len(places) > MAX_MODELS:
        raise WeightsError(f"it holds {len(places)} models; save one of them alone")
    counters = [name.removesuffix("n_averaged") for name in tensors if name.endswith("n_averaged")]
    models = []
    for prefix, (layout, root) in places.items():
        names = {
            layout.bare(name.removeprefix(prefix)): name
            for name in tensors
            if name.startswith(prefix)
        }
        if layout.name == "timm":
            names = _unchunked(names)
        model = _Model(layout, prefix, root, names, False)
        is_averaged = bool(model.words & _AVERAGED) or any(
            prefix.startswith(f"{counter}module.") for counter in counters
        )
        models.append(model._replace(is_averaged=is_averaged))
    return models


def _is_equal(one: _Model, other: _Model, tensors: Mapping[str, Tensor]) -> bool:
    """Return whether two models are copies of each other."""
    return one.names.keys() == other.names.keys() and all(
        torch.equal(tensors[name], tensors[other.names[bare]]) for bare, name in one.names.items()
    )


def _places(models: Collection[_Model], most: int = 6) -> str:
    places = [model.place for model in models]
    rest = len(places) - most
    return ", ".join(places[:most]) + (f" and {rest} more" if rest > 0 else "")


def _choose(tensors: Mapping[str, Tensor], key: str | None) -> tuple[_Model, tuple[str, ...]]:
    """Return the model to take, and a note for each that could be taken instead.

    Raises:
        WeightsError: there is none, none at `key`, or several of equal right.
    """
    found = _find(tensors)
    if key is not None:
        at_key = [model for model in found if model.is_at(key.rstrip("./") or ".")]
        if not at_key:
            raise WeightsError(f"--pretrained_key {key}: it holds models at: {_places(found)}")
        found = at_key
    whole = [model for model in found if model.is_whole]
    if not whole:  # what it lacks is said where it is loaded
        return max(found, key=lambda model: len(model.names)), ()
    left, notes = whole, []
    for what, is_better in (
        ("student", _Model.is_teacher_of),
        ("averaged copy", lambda model, other: other.is_average_of(model)),
    ):
        worse = [model for model in left if any(is_better(other, model) for other in left)]
        left = [model for model in left if model not in worse]
        notes += [(what, model.place) for model in worse]
    left = [left[0], *(m for m in left[1:] if not _is_equal(left[0], m, tensors))]
    if len(left) > 1:
        raise WeightsError(
            f"it holds {len(left)} whole models, at: {_places(left)}; choose one with "
            "--pretrained_key"
        )
    return left[0], tuple(
        f"took {left[0].place}, not the {what} (--pretrained_key {place})" for what, place in notes
    )


def to_our_names(tensors: Mapping[str, Tensor], key: str | None = None) -> Named:
    """Find the model and rename its tensors; separate query, key and value are stacked.

    Args:
        tensors: tensors by their names in the file.
        key: place of the model in the file; None: wherever one is.

    Raises:
        WeightsError: an unknown layout, several models of equal right, a distilled DeiT, or a
            tensor in a block that no ViT of ours has.
    """
    model, notes = _choose(tensors, key)
    layout = model.layout
    if any(name.endswith(("dist_token", "distillation_token")) for name in model.names):
        raise WeightsError("it is a distilled DeiT, with two class tokens; use one without")
    ours: dict[str, Tensor] = {}
    thirds: dict[str, dict[int, Tensor]] = {}
    used, strange, names = set(), [], _Names(model)
    for bare, name in model.names.items():
        our_name = layout.our_name(bare)
        if our_name is None:
            strange += [name] if bare.startswith(layout.strict) else []
            continue
        used.add(name)
        our_name, _, third = our_name.partition("|")
        if third:
            thirds.setdefault(our_name, {})[int(third)] = layout.convert(bare, tensors[name])
        else:
            ours[our_name] = layout.convert(bare, tensors[name])
            names[our_name] = name
    if strange:
        raise WeightsError(f"{', '.join(sorted(strange)[:3])}: not part of a {layout.name} ViT")
    for our_name, parts in thirds.items():
        shapes = {tuple(part.shape) for part in parts.values()}
        # Where they do not stack, the key is missing, and loading says so.
        if len(parts) == 3 and len(shapes) == 1 and () not in shapes:
            ours[our_name] = torch.cat([parts[n] for n in range(3)])
    # Only flax keeps the heads apart: (H, D/H).
    biases = [t for name, t in tensors.items() if name in used and name.endswith("query/bias")]
    num_heads = biases[0].shape[0] if biases and biases[0].ndim == 2 else None
    unused = tuple(sorted(tensors.keys() - used))
    return Named(layout.name, layout.profile, ours, unused, num_heads, names, notes)


class _Names(dict[str, str]):
    """Names in the file by our names; of a tensor that is missing, what its name would be."""

    def __init__(self, model: _Model) -> None:
        super().__init__()
        self.model = model

    def __missing__(self, ours: str) -> str:
        model = self.model
        theirs = model.layout.their_names(ours)
        absent = [name for name in theirs if name not in model.names]
        prefix = model.prefix + ("" if ours.startswith("head.") else model.root)
        names = [model.names.get(name, prefix + name) for name in absent or theirs]
        return ", ".join(names) or ours
