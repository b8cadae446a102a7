"""What the benchmarks measure with: rounds, ratios, bytes, promises, flags."""

import argparse
import subprocess

import pytest
import torch

from scripts.dev import benchmark
from scripts.dev.benchmarks import contenders
from scripts.dev.benchmarks import data as data_figures
from scripts.dev.benchmarks import model as model_figures
from scripts.dev.benchmarks import save as save_figures
from scripts.dev.benchmarks.timing import in_turn, peak_bytes, ratio_of
from utils.data.catalog import get_spec
from utils.dataset import open_split


def test_actions_take_turns_after_an_uncounted_round():
    calls = []
    times = in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2)
    assert calls == ["a", "b"] * 3
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 2, "b": 2}


def test_the_ratio_is_the_median_within_rounds():
    # The second round is ten times slower for both: its ratio is as good as the others.
    figure = ratio_of([2.0, 30.0, 2.0], [1.0, 10.0, 4.0])
    assert figure["ratio"] == 2.0
    assert figure["ratio_range"] == [0.5, 3.0]
    assert (figure["a_seconds"], figure["b_seconds"]) == (2.0, 4.0)


def test_peak_bytes_counts_what_is_held_at_once():
    def one_after_another():
        for _ in range(3):
            torch.ones(1_000_000)

    def together():
        return [torch.ones(1_000_000) for _ in range(3)]

    held = torch.ones(5_000_000)  # before: not counted
    assert 4_000_000 <= peak_bytes(one_after_another) < 4_100_000
    assert 12_000_000 <= peak_bytes(together) < 12_100_000
    assert held.sum() == 5_000_000


def test_every_promise_is_about_a_figure_that_is_measured(monkeypatch):
    # The real contenders at a size that takes seconds; what they reach there says nothing.
    monkeypatch.setattr(contenders, "MODEL_TYPE", "testing")
    monkeypatch.setattr(contenders, "LIBRARIES_DEPTH", 1)
    monkeypatch.setattr(model_figures, "PART_SIZE", 32)
    monkeypatch.setattr(model_figures, "PLAIN_SIZE", 32)
    args = argparse.Namespace(pairs=1, tolerance=0.0)
    figures, _ = model_figures.measure_model(args)
    promised = model_figures.AT_MOST.keys() | model_figures.AT_LEAST.keys()
    assert figures["ratios"].keys() == promised
    assert figures["detail"]["peak_bytes"].keys() == {"part", "naive", "checkpointed"}


def test_a_missed_promise_is_said():
    kept = dict.fromkeys(model_figures.AT_MOST, 0.0) | dict.fromkeys(model_figures.AT_LEAST, 9.0)
    assert model_figures.missed_promises(kept) == []
    slow = {**kept, "part_over_timm_eval": 1.2, "naive_over_part_train": 1.5}
    assert model_figures.missed_promises(slow) == [
        "part_over_timm_eval is 1.200, over 1.150",
        "naive_over_part_train is 1.500, under 1.600",
    ]
    assert model_figures.missed_promises(slow, tolerance=0.1) == []
    (said,) = model_figures.missed_promises({**kept, "part_over_naive_memory": 0.34}, tolerance=0.5)
    assert "part_over_naive_memory" in said


@pytest.mark.parametrize(("max_share", "is_missed"), [(1.0, False), (1e-9, True)])
def test_the_price_of_saving_is_measured(monkeypatch, max_share, is_missed):
    values = {"MODEL_TYPE": "testing", "IMG_SIZE": 32, "MAX_SHARE": max_share}
    for name, value in values.items():
        monkeypatch.setattr(save_figures, name, value)
    figures, missed = save_figures.measure_save(argparse.Namespace(pairs=2, tolerance=0.0))
    lowest, highest = figures["share_range"]
    assert 0 < lowest <= figures["share"] <= highest < 1
    assert figures["snapshot_bytes"] > 100_000
    assert missed == ([f"saving takes {figures['share']:.1%}"] if is_missed else [])


class TestData:
    @pytest.fixture(scope="class")
    def split(self, drawn):
        whole = open_split(get_spec("flower102"), drawn, "train")
        return data_figures.chosen_images(whole, data_figures.BATCH)

    @pytest.mark.parametrize(("tolerance", "missed"), [(0.0, ["transfg", "vit"]), (1.0, [])])
    def test_both_presets_are_measured_against_pils(self, split, monkeypatch, tolerance, missed):
        monkeypatch.setattr(data_figures, "MIN_SPEEDUP", 1e6)
        figures, said = data_figures.measure_speed(split, 1, tolerance)
        assert [sentence.split()[0] for sentence in said] == missed
        measured = {"transfg", "transfg from disk", "vit", "vit from disk"}
        assert figures["times_as_fast_as_pil"].keys() == measured
        assert figures["images_per_second_per_core"].keys() > measured | {"decode alone"}

    @pytest.mark.parametrize(
        ("fraction", "said"), [("0.0100", []), ("0.0132", ["training waits 1.32% of its time"])]
    )
    def test_a_run_that_waits_is_said(self, tmp_path, monkeypatch, fraction, said):
        done = subprocess.CompletedProcess([], 0, f"a line\n  data_wait_fraction  {fraction}\n", "")
        monkeypatch.setattr(data_figures.subprocess, "run", lambda *_, **__: done)
        figures, missed = data_figures.measure_wait(tmp_path, 15)
        assert (figures["wait_fraction"], missed) == (float(fraction), said)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("startup --json none/figures.json", "--json none/figures.json: the folder none does not"),
        ("save --json {drawn}/setid.mat", "--json: {drawn}/setid.mat exists and is not one that"),
        ("model --pairs 0", "argument --pairs: '0' is not a whole number above 0"),
        ("data", "no data for flower102: give --data_root"),
        ("data --images 5 --data_root {drawn}", "--images 5 is under a batch of 32"),
    ],
)
def test_wrong_flags_are_refused_before_measuring(flags, message, drawn, capsys):
    assert benchmark.main(flags.format(drawn=drawn).split()) == 2
    assert f"error: {message.format(drawn=drawn)}" in capsys.readouterr().err
