"""Read what the files beside a weight file say, and complete or contradict a profile by it."""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from models.pretrained.profiles import (
    AUTO,
    CLIP,
    CLIP_QUICKGELU,
    IMAGENET,
    PROFILES,
    SIGLIP,
    Profile,
    ProfileError,
)


class Sidecar(NamedTuple):
    """What the files beside a weight file say; None for what they do not say."""

    sources: tuple[str, ...] = ()  # names of the files that say something
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    layer_norm_eps: float | None = None
    activation: str | None = None
    sizes: Mapping[str, int] = {}  # embed_dim, depth and num_heads, those that are said
    inferred: tuple[str, ...] = ()  # fields that only follow from an architecture's name

    def contradictions(self, profile: Profile, fields: Collection[str]) -> list[str]:
        """Return in words which of `fields` it says, and says otherwise than `profile`."""
        wrong = []
        for field in sorted({*fields} - {*self.inferred}):
            said, known = getattr(self, field), getattr(profile, field)
            if said is not None and said != known:
                wrong.append(f"{field} {said}, not {known}")
        return wrong


# Names of activations in configs of Hugging Face and timm, and ours.
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_tanh": "gelu_tanh",
}
_HF_SIZES = {
    "hidden_size": "embed_dim",
    "num_hidden_layers": "depth",
    "num_attention_heads": "num_heads",
}
_HF_MODEL_TYPES = ("vit", "deit", "dinov2", "dinov2_with_registers")


_REMEDY = "mend or remove it, or name a --pretrained_profile"


def _read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file; empty if the file does not exist."""
    if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe would be waited for
        raise ProfileError(f"{path} is not a file; remove it")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ProfileError(f"{path} is not readable as JSON; {_REMEDY}") from error
    if not isinstance(value, dict):
        raise ProfileError(f"{path} is not a JSON object; {_REMEDY}")
    return value


def _channels(path: Path, value: object, is_std: bool) -> tuple[float, float, float] | None:
    """Check and return a number per RGB channel, above 0 for a standard deviation; None: none."""
    if value is None:
        return None
    is_right = isinstance(value, list | tuple) and len(value) == 3
    is_right = is_right and all(type(v) in (int, float) and abs(v) < 1e30 for v in value)
    if not is_right or (is_std and min(value) <= 0):
        raise ProfileError(f"{path}: {value!r} is not a mean or standard deviation per RGB channel")
    return tuple(float(v) for v in value)


def _activation(path: Path, name: object) -> str | None:
    if name is None:
        return None
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise ProfileError(f"{path}: the activation {name!r} is not one of ours")
    return _ACTIVATIONS[name]


def _eps(path: Path, value: object) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 < value < 1:
        raise ProfileError(f"{path}: {value!r} is not a LayerNorm eps")
    return float(value)


def _from_hugging_face(path: Path, config: Mapping[str, Any]) -> Sidecar:
    sizes = {ours: config[key] for key, ours in _HF_SIZES.items() if type(config.get(key)) is int}
    return Sidecar(
        sources=(path.name,),
        layer_norm_eps=_eps(path, config.get("layer_norm_eps")),
        activation=_activation(path, config.get("hidden_act")),
        sizes=sizes,
    )


# Parts of the names of timm's SigLIP towers whose GELU is the tanh approximation.
_TIMM_SIGLIP_GELU_TANH = (
    "base_patch32_siglip",
    "large_patch16_siglip_512",
    "so400m_patch16_siglip",
    "giantopt",
)
# Its CLIP towers that were trained with the quick GELU though their architecture's name does not
# say it ("natively QuickGELU" in default_cfgs of timm 1.0.31's vision_transformer.py).
_TIMM_QUICK = re.compile(
    r".*\.(openai|metaclip_400m|metaclip_2pt5b|dfn5b)|vit_large_patch14_clip_224\.dfn2b"
)


def _from_timm(path: Path, config: Mapping[str, Any]) -> Sidecar:
    """Read timm's config.json: it has the statistics; its architecture's name says the rest."""
    architecture = str(config["architecture"])
    data = config.get("pretrained_cfg")
    data = data if isinstance(data, dict) else config
    arguments = config.get("model_args")
    arguments = arguments if isinstance(arguments, dict) else {}
    kind = IMAGENET
    if "clip" in architecture:
        name = f"{architecture}.{data.get('tag')}"
        is_quick = "quickgelu" in architecture or _TIMM_QUICK.fullmatch(name)
        kind = CLIP_QUICKGELU if is_quick else CLIP
    elif "siglip" in architecture:
        is_tanh = any(name in architecture for name in _TIMM_SIGLIP_GELU_TANH)
        kind = SIGLIP._replace(activation="gelu_tanh" if is_tanh else SIGLIP.activation)
    activation = _activation(path, arguments.get("act_layer"))
    sizes = {
        key: v
        for key in ("embed_dim", "depth", "num_heads")
        if type(v := arguments.get(key)) is int
    }
    return Sidecar(
        sources=(path.name,),
        mean=_channels(path, data.get("mean"), is_std=False),
        std=_channels(path, data.get("std"), is_std=True),
        layer_norm_eps=kind.layer_norm_eps,
        activation=activation or kind.activation,
        sizes=sizes,
        inferred=("layer_norm_eps", *(() if activation else ("activation",))),
    )


def _from_open_clip(path: Path, config: Mapping[str, Any]) -> Sidecar:
    """Read what open_clip says; its LayerNorm eps, and GELU if not quick, are its code's."""
    model, images = config.get("model_cfg"), config.get("preprocess_cfg")
    model, images = (part if isinstance(part, dict) else {} for part in (model, images))
    vision = model.get("vision_cfg")
    vision = vision if isinstance(vision, dict) else {}
    is_quick = model.get("quick_gelu") is True
    names = {"embed_dim": "width", "depth": "layers"}
    return Sidecar(
        sources=(path.name,),
        mean=_channels(path, images.get("mean"), is_std=False),
        std=_channels(path, images.get("std"), is_std=True),
        layer_norm_eps=CLIP.layer_norm_eps,
        activation="quick_gelu" if is_quick else "gelu",
        sizes={ours: v for ours, name in names.items() if type(v := vision.get(name)) is int},
        inferred=("layer_norm_eps", *(() if is_quick else ("activation",))),
    )


def read_sidecar(folder: Path) -> Sidecar:
    """Read what the configs and `preprocessor_config.json` in `folder` say of the weights there.

    A `config.json` of neither Hugging Face nor timm says nothing; `open_clip_config.json` is read
    where it says nothing.

    Raises:
        ProfileError: a file cannot be read, or describes a model that we do not have.
    """
    path = folder / "config.json"
    config = _read_json(path)
    said = Sidecar()
    if config.get("model_type") in _HF_MODEL_TYPES:
        said = _from_hugging_face(path, config)
    elif "architecture" in config:
        said = _from_timm(path, config)
    elif config := _read_json(path := folder / "open_clip_config.json"):
        said = _from_open_clip(path, config)
    path = folder / "preprocessor_config.json"
    images = _read_json(path)
    if images.get("image_mean") is not None and images.get("image_std") is not None:
        said = said._replace(
            sources=(*said.sources, path.name),
            mean=_channels(path, images["image_mean"], is_std=False),
            std=_channels(path, images["image_std"], is_std=True),
        )
    return said


def complete(said: Sidecar, default: Profile) -> tuple[Profile, list[str]]:
    """Complete what a sidecar says to a profile; also return the fields taken from `default`."""
    fields = {field: getattr(said, field) for field in Profile._fields}
    known = {field: value for field, value in fields.items() if value is not None}
    return default._replace(**known), [field for field in fields if field not in known]


def public_profile(said: Sidecar, public: Profile, profile: str) -> Profile:
    """Return the profile of public weights, after comparing it with the files beside them.

    Args:
        said: what those files say.
        public: profile that is known of the weights.
        profile: name in `PROFILES`, whose mean and standard deviation are taken; or "auto".

    Raises:
        ProfileError: the files contradict it.
    """
    is_named = profile != AUTO
    fields = ("layer_norm_eps", "activation") if is_named else Profile._fields
    wrong = said.contradictions(public, fields)
    if wrong:
        raise ProfileError(
            f"{' and '.join(said.sources)} beside it says {', '.join(wrong)} as the table of "
            "weights does: its publisher changed it; hf:owner/repository takes it as it is"
        )
    named = PROFILES.get(profile, public)
    return public._replace(mean=named.mean, std=named.std)


def sidecar_of(path: Path, sizes: dict[str, int]) -> Sidecar:
    """Return what the files beside the weights say, and add what they say of sizes to `sizes`."""
    said = read_sidecar(path.parent)
    differing = [
        f"{key} {value} where the weights have {sizes[key]}"
        for key, value in said.sizes.items()
        if sizes.get(key, value) != value
    ]
    if differing:
        raise ProfileError(
            f"{path.parent / 'config.json'} describes another model ({', '.join(differing)}); "
            "remove it, or name a --pretrained_profile"
        )
    sizes.update(said.sizes)
    return said
