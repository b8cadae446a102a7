"""Parse a command line by the rows of the flag table. Imports no torch."""

import argparse
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from utils.cli.flags import GROUPS, LAST, REQUIRED, Flag, help_of
from utils.cli.types import Number, path, run_name
from utils.data_utils import RunPaths
from utils.errors import InputError, check_utf8, near_miss, os_errors_are_input_errors
from utils.files import kind_of

ABOUT = {
    "train": "Fine-tune a Vision Transformer.",
    "eval": "Evaluate a checkpoint. Architecture, image size, preset, held-out val split, class "
    "list and normalisation come from the checkpoint; a flag that contradicts it is an error.",
    "probe": "Fit classifiers to the features of a frozen model, and keep the best as its head.",
}
FILES = {"train": "train.py", "eval": "eval.py", "probe": "scripts/probe.py"}


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Show the default unless there is none or the help text explains it itself."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.required or "default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """The parser of every entrypoint and script: no abbreviations, a wrong flag is one line."""

    def __init__(self, **kwargs: Any) -> None:  # noqa: ANN401 - argparse's own
        super().__init__(allow_abbrev=False, formatter_class=_HelpFormatter, **kwargs)

    def parse_known_args(self, args=None, namespace=None):  # noqa: ANN001, ANN201 - argparse's own
        """As argparse does, but of text that can be written: stamps and reports quote it.

        Raises:
            InputError: an argument is not UTF-8, or is none of the parser's.
        """
        args = sys.argv[1:] if args is None else list(args)
        for text in args:
            check_utf8(text)
        known, rest = super().parse_known_args(args, namespace)
        if rest:
            meant = near_miss(rest[0].partition("=")[0], self._option_string_actions)
            self.error(f"unrecognized arguments: {' '.join(rest)}{meant}")
        return known, rest

    def _check_value(self, action: argparse.Action, value: object) -> None:
        """As argparse does, and name the choice that a wrong value nearly spells."""
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += near_miss(str(value), map(str, action.choices))
            raise

    def error(self, message: str) -> NoReturn:
        """End with the one line of bad input.

        Raises:
            InputError: always.
        """
        raise InputError(f"{message} (see {self.prog} --help)")


def build_parser(program: str, choices: Mapping[str, Collection[str]]) -> Parser:
    """Build the parser of a program, which returns only what was given by hand.

    Args:
        program: `train`, `eval` or `probe`.
        choices: names by flag, for the flags whose choices are not in the table.
    """
    parser = Parser(
        prog=FILES[program], description=ABOUT[program], argument_default=argparse.SUPPRESS
    )
    for title, flags in GROUPS.items():
        group, either = parser.add_argument_group(title), None
        for flag in flags:
            if program not in flag.programs:
                continue
            if flag.excludes:
                either = either or group.add_mutually_exclusive_group()
            names = tuple(choices.get(flag.name, ()))
            target = either if flag.excludes else group
            target.add_argument(f"--{flag.name}", **_options(flag, program, names))
    return parser


def _options(flag: Flag, program: str, choices: tuple[str, ...]) -> dict[str, Any]:
    """Return what argparse is told of a flag."""
    options: dict[str, Any] = {"help": help_of(flag, program, choices).replace("%", "%%")}
    # A run's folder, given to --resume, says its name too.
    if flag.default is REQUIRED and (program, flag.name) != ("train", "name"):
        options["required"] = True
    if flag.kind is bool:
        return {**options, "action": argparse.BooleanOptionalAction}
    if isinstance(flag.kind, tuple):
        options |= {"choices": flag.kind or choices, "type": flag.first}
    else:
        options["type"] = flag.kind
    is_whole = isinstance(flag.kind, Number) and flag.kind.kind is int
    usual = "PATH" if flag.kind is path else "NAME" if choices else "N" if is_whole else None
    options["metavar"] = flag.metavar or usual
    if flag.bare is not None:
        options |= {"nargs": "?", "const": flag.bare}
    return options


def parse(
    program: str, argv: Sequence[str], choices: Mapping[str, Collection[str]]
) -> dict[str, Any]:
    """Return the values of the flags that `argv` has, by flag.

    Raises:
        InputError: a flag is wrong or missing.
        SystemExit: with code 0, after `--help` or `--recipe list`.
    """
    parser = build_parser(program, choices)
    given = vars(parser.parse_args(argv))
    if "resume" in given:
        with os_errors_are_input_errors({"--resume": given["resume"]}):
            given |= _place_of(given)
    if "name" not in given:
        parser.error("the following arguments are required: --name")
    return given


def _place_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return `resume`, and name and output folder of the run where `--resume` names its folder.

    Raises:
        InputError: that folder is not a run's, or other flags contradict it.
    """
    folder = Path(given["resume"])
    if given["resume"] == LAST:
        return {}
    if kind_of(folder) != "folder":
        return {"resume": folder.resolve()}
    folder = folder if folder.name not in ("", "..") else folder.resolve()
    paths = RunPaths(folder.parent, folder.name)
    if not any(paths.last.parent.glob("last*.bin")):
        raise InputError(
            f"--resume {given['resume']} is a folder without snapshots; name that of a run, which "
            "holds checkpoints/last.bin"
        )
    name, output_dir = given.get("name", paths.name), given.get("output_dir", paths.output_dir)
    if name == paths.name and output_dir.resolve() == paths.output_dir.resolve():
        try:
            run_name(name)
        except argparse.ArgumentTypeError as error:
            raise InputError(f"--resume {given['resume']}: {error}; rename it") from error
        return {"name": name, "output_dir": paths.output_dir, "resume": LAST}
    if "name" not in given:
        raise InputError(
            f"--output_dir {output_dir} is not where the run of --resume {given['resume']} lies; "
            "leave it out, or give the --name of a new run"
        )
    return {"resume": paths.last.resolve()}
