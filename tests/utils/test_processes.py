"""Check that one process keeps what it has, and that two exchange values and fail together."""

import json
import math
import platform
import subprocess
import sys

import pytest
import torch
from forked import Together
from helpers import REPO
from process_checks import COUNTS, FAILURES, MARGIN, layer, own_samples, samples

from models.losses import contrastive_loss
from utils.errors import Alone, RunError
from utils.processes import (
    failing_together,
    from_main,
    gather_objects,
    gather_objects_on_main,
    gather_rows,
    hosts,
    is_main,
    joined_processes,
    main_first,
    on_main,
    raise_first_failure,
    rank,
    sum_by_rank,
    world_size,
)
from utils.training.ddp import exchange_gradients, gather_features, without_exchange


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[dict]:
    """What two real processes got, by rank."""
    folder = tmp_path_factory.mktemp("two")
    together = Together(2, "process_checks.py", [str(folder)], folder / "output.txt")
    assert together.end(120) == [0, 0], together.said()
    return [json.loads((folder / f"{rank}.json").read_text("utf-8")) for rank in range(2)]


class TestOneProcess:
    def test_is_the_main_one_and_alone(self):
        assert (world_size(), rank(), is_main()) == (1, 0, True)
        assert hosts() == [platform.node()]

    def test_exchanges_nothing(self):
        value = {"a": [1, 2]}
        assert from_main(value) is value
        for values in (gather_objects(value), gather_objects_on_main(value)):
            assert len(values) == 1
            assert values[0] is value
        assert gather_rows([3, 4]) == [[3, 4]]
        numbers = torch.ones(2)
        assert sum_by_rank(numbers) is numbers
        assert gather_features([5]) is None

    def test_trains_the_model_itself(self):
        model = layer()
        assert exchange_gradients(model) is model
        with without_exchange(model):
            model(torch.ones(1, 5)).sum().backward()
        assert model.weight.grad is not None

    @pytest.mark.parametrize("failure", [*FAILURES.values(), KeyError("x"), KeyboardInterrupt("x")])
    def test_fails_with_the_error_itself(self, failure):
        with pytest.raises(type(failure)) as caught, failing_together():
            raise failure
        assert caught.value is failure
        assert caught.value.__cause__ is None
        with pytest.raises(type(failure)) as caught:
            raise_first_failure(failure)
        assert caught.value is failure
        raise_first_failure(None)

    def test_does_the_work_of_the_main_one(self):
        assert on_main(divmod, 7, 2) == (3, 1)
        with pytest.raises(RunError, match=r"^x$"), main_first():
            raise RunError("x")

    def test_joins_nobody(self, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "1")
        with joined_processes():
            assert world_size() == 1
            assert not torch.distributed.is_initialized()

    def test_imports_nothing_of_torch(self):
        code = "import sys, utils.processes; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], cwd=REPO, check=False).returncode == 0

    def test_of_several_that_cannot_be_reached_is_one_line(self, monkeypatch):
        for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "1"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("MASTER_ADDR", raising=False)
        with (
            # Of each on its own: the first process does not know of the trouble of another.
            pytest.raises(Alone, match=r"^the other processes cannot be reached: .*MASTER_ADDR"),
            joined_processes(),
        ):
            pass


class TestExchange:
    def test_knows_who_is_who(self, two):
        assert [each["is"] for each in two] == [[2, 0, True], [2, 1, False]]
        assert [each["hosts"] for each in two] == [[platform.node()] * 2] * 2

    def test_brings_everything_to_all_by_rank(self, two):
        for got in (each["exchanged"] for each in two):
            assert got["gather_objects"] == [
                {"rank": 0, "text": ""},
                {"rank": 1, "text": "x" * 1000},
            ]
            assert got["gather_rows"] == [[0, 0, 2**40], [1, -1, 2**40 + 1]]
            assert got["one_row"] == [[0], [1]]
            assert got["from_main"] == {"value": "of 0", "none": None}

    def test_brings_objects_to_main_alone(self, two):
        assert [each["exchanged"]["gather_objects_on_main"] for each in two] == [
            [[0, None], [1, None]],
            [],
        ]

    def test_sums_element_by_element(self, two):
        for got in (each["exchanged"] for each in two):
            (first, half), (bad, last) = got["sum"]
            assert (first, half, last) == (3.0, 1.0, -1.0)
            assert math.isnan(bad)
            assert got["sum_of_counts"] == [3, 20]


class TestFailingTogether:
    @pytest.mark.parametrize("who", [(0,), (1,), (0, 1)])
    @pytest.mark.parametrize(
        ("name", "kind", "message"),
        [
            ("input", "InputError", "--flag is wrong"),
            ("run", "RunError", "image a.jpg cannot be decoded"),
            ("lost", "RunError", "another process is gone"),
            ("os", "RunError", "[Errno 28] No space left on device: '/x'"),
            ("memory", "OutOfMemory", "out of memory"),
            ("loader", "RunError", "DataLoader worker (pid 7) is killed by signal: Killed."),
            ("lines", "RunError", r"one\n  two"),
        ],
    )
    def test_is_one_message_in_both(self, two, name, kind, message, who):
        for number, each in enumerate(two):
            assert each["failed"][f"{name} {who}"] == [kind, message, number in who]

    def test_takes_the_first_of_several_and_happens_only_where_one_fails(self, two):
        for failed in (each["failed"] for each in two):
            assert failed["both"] == ["RunError", "of the first"]
            assert failed["none"] is True
            assert failed["raise_first_failure"] == "of the second"


def test_what_the_main_process_did_reaches_both(two):
    got = [each["on_main"] for each in two]
    assert [(each["value"], each["failure"]) for each in got] == [("value 3 of 0", "bad -1")] * 2
    assert [each["calls"] for each in got] == [[3, -1], []]


def test_main_is_first_however_it_ends(two):
    assert [each["main_first"] for each in two] == [
        {"seen": False, "seen_again": True, "failure": "it failed"},
        {"seen": True, "seen_again": True, "failure": "it failed"},
    ]


@pytest.mark.parametrize("number", range(len(COUNTS)), ids=[str(counts) for counts in COUNTS])
class TestGather:
    """Gather any numbers of samples: loss and gradients are those of one process."""

    def test_gives_the_loss_of_one_process(self, two, number):
        loss = contrastive_loss(*samples(sum(COUNTS[number])), MARGIN)
        for each in two:
            assert each["gathered"][number]["loss"] == pytest.approx(loss.item(), rel=1e-6)

    def test_gives_the_weights_the_gradient_of_one_process(self, two, number):
        inputs, labels = samples(sum(COUNTS[number]))
        model = layer()
        contrastive_loss(model(inputs), labels, MARGIN).backward()
        for each in two:
            for got, parameter in zip(
                each["gathered"][number]["weights"], model.parameters(), strict=True
            ):
                assert torch.allclose(torch.tensor(got), parameter.grad, atol=1e-6)
        assert two[0]["gathered"][number]["weights"] == two[1]["gathered"][number]["weights"]


def test_gradients_of_several_passes_are_exchanged_once(two):
    model = layer()
    for own in range(2):
        (model(own_samples((3, 3), own)[0]).square().sum() / 2).backward()
    for each in two:
        for got, parameter in zip(each["accumulated"], model.parameters(), strict=True):
            assert torch.allclose(torch.tensor(got), parameter.grad, atol=1e-5)
