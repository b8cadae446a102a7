"""utils/cli/defaults.py: the rate fits the optimizer, and whether weights can be ruined."""

import pytest
from helpers import CHOICES

from utils.cli.defaults import FITS, fitting_defaults
from utils.cli.flags import FLAGS
from utils.cli.resolve import parse_train

NEW = {"sgd": (0.03, None), "adamw": (1e-3, 1.0)}
PRETRAINED = {"sgd": (0.003, None), "adamw": (1e-4, 0.75)}


@pytest.mark.parametrize("optimizer", NEW)
def test_fit_the_optimizer_and_the_weights_that_are_trained(tmp_path, optimizer):
    weights = tmp_path / "weights.npz"
    weights.touch()
    for argv, table in (
        ([], NEW),
        (["--pretrained", weights], PRETRAINED),
        (["--pretrained", weights, "--freeze", 2], PRETRAINED),
        (["--pretrained", weights, "--freeze", "backbone"], NEW),  # nothing can be ruined
    ):
        argv = ["--name", "a", "--optimizer", optimizer, *argv]
        config = parse_train([str(text) for text in argv], CHOICES)
        assert (config.learning_rate, config.layer_decay) == table[optimizer]
        by_hand = parse_train([*map(str, argv), "--learning_rate=0.5"], CHOICES)
        assert (by_hand.learning_rate, by_hand.layer_decay) == (0.5, table[optimizer][1])


def test_each_has_a_source_and_stands_in_the_help():
    for flag, by_optimizer in FITS.items():
        assert FLAGS[flag].default is None
        for optimizer, fit in by_optimizer.items():
            assert fit.new.source
            assert fit.pretrained.source
            text = f"with {optimizer} {fit.new.value}, or {fit.pretrained.value} where pretrained"
            assert text in FLAGS[flag].text
            values = {"optimizer": optimizer, "pretrained": None, "freeze": "none"}
            assert fitting_defaults(values)[flag] == fit.new.value
