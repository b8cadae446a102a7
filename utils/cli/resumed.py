"""Give the flags of a resumed run its values, and refuse flags that contradict it. No torch."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ml_collections import FrozenConfigDict

from utils.cli.flags import CACHE_FOLDER, CHANGEABLE, FLAGS, experiment_of, may_change
from utils.cli.parser import parse
from utils.data_utils import SYNTHETIC_FOLDER
from utils.errors import InputError
from utils.files import canonical_json, kind_of
from utils.hub import is_address

# What says where the run lies and how it is resumed; `recipe` is a record; and `epochs` follows.
NOT_OF_RUN = ("name", "output_dir", "resume", "allow_change", "recipe", "epochs", "take_over")
_WORDS = {"None": "none", "True": "on", "False": "off"}
# What can be compared only when the data are open: `check_same_run` does.
LATE = ("epochs", "tiny_train_subset", "tiny_infer_subset")


def values_of_run(
    run: Mapping[str, Any], given: Mapping[str, Any], choices: Mapping[str, Collection[str]]
) -> dict[str, Any]:
    """Return the values that a run has for its flags, checked as if they were typed.

    Args:
        run: header of its snapshot.
        given: flags given by hand; a length among them takes the place of the run's.
        choices: names by flag, for the flags whose choices are not in the table.

    Raises:
        InputError: a value cannot be used.
    """
    config, argv = run["config"], ["--name=run"]
    recipe = config.get("recipe")
    for name, flag in FLAGS.items():
        value = config.get(name)
        if value is None or "train" not in flag.programs or name in NOT_OF_RUN:
            continue
        if flag.kind is bool:
            argv.append(f"--{name}" if value is True else f"--no-{name}")
        else:
            argv.append(f"--{name}={value}")
    try:
        values = parse("train", argv, choices)
        if not isinstance(recipe, dict | None):
            raise TypeError("recipe is not a record")
        canonical_json(recipe)  # the stamp is to quote it
        is_there = kind_of(values.get("data_root", Path())) is not None
    except (InputError, TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"--resume: the snapshot's flags or recipe cannot be used: {error}"
        ) from error
    # These lie in the output folder, wherever it is now.
    for name, folder in (("data_root", SYNTHETIC_FOLDER), ("cache_dir", CACHE_FOLDER)):
        if values.get(name) == Path(str(config.get("output_dir")), folder):
            del values[name]
    if not is_there:
        values.pop("data_root", None)  # moved, or on another machine: $DATA_ROOT may say where
    if "epochs" in given or "num_steps" in given:
        values.pop("num_steps", None)
    del values["name"]
    return {**values, "recipe": recipe}


def check_given(
    given: Mapping[str, Any],
    values: Mapping[str, Any],
    run: Mapping[str, Any],
    datasets: Mapping[str, str],
) -> None:
    """Raise if a flag was given that contradicts the run, and may not.

    Args:
        given: flags given by hand.
        values: resolved values of all flags.
        run: header of the snapshot to resume from.
        datasets: the name that each name of a dataset stands for.

    Raises:
        InputError: names the flags, and the values that the run has.
    """
    names = [name for name in given if FLAGS[name].hashed != "never" and name not in LATE]
    weights = values["pretrained"]
    if is_address(weights) and weights == run["config"].get("pretrained"):
        names = [name for name in names if name != "pretrained"]  # nothing is fetched again
    now = experiment_of(FrozenConfigDict({name: values[name] for name in names}))
    if "dataset" in now:
        now["dataset"] = datasets[now["dataset"]]
    before = run["experiment"]
    allowed = may_change(values["allow_change"])
    refused = [name for name in names if now.get(name) != before.get(name) and name not in allowed]
    shown = {name: (values[name], run["config"].get(name)) for name in refused}
    recipe = (run["config"].get("recipe") or {}).get("name")
    if given.get("recipe", recipe) != recipe:
        shown["recipe"] = given["recipe"], recipe
    if not shown:
        return
    listed = ", ".join(
        f"--{name} {_said(own)} (the run's: {_said(of_run)}"
        f"{', as it was then' if str(own) == of_run else ''})"
        for name, (own, of_run) in shown.items()
    )
    way = ", or start another run"
    if shown.keys() <= {*CHANGEABLE}:
        way = f", or allow the change by --allow_change {','.join(shown)}"
    which = "it" if len(shown) == 1 else "them"
    raise InputError(f"--resume: the run was started otherwise: {listed}; leave {which} out{way}")


def _said(value: object) -> object:
    """Return a value as a person calls it."""
    return _WORDS.get(str(value), value)
