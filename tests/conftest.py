"""Share fixtures: drawn flowers, real flowers, refusals, one finished training run."""

import gc
import multiprocessing
import signal
import warnings
from pathlib import Path

import pytest
from helpers import REAL_FLOWERS, SUBSETS, TINY_TRAIN, train
from hypothesis import HealthCheck, settings
from torch.utils.data import _utils
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from utils.data.readers import synthetic
from utils.data_utils import RunPaths

# The same examples each time, however slow the machine is: a test that fails fails again.
# `--hypothesis-profile default` looks for new ones.
settings.register_profile(
    "repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def _children_can_be_interrupted():
    """A shell's background job ignores Ctrl-C, and so would every process it starts."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.fixture(autouse=True)
def _no_loader_is_left():
    """End loaders that an exception's traceback keeps alive; what collects them waits for them.

    For ever, if one held a lock of theirs when it was ended, so they are marked as collected.
    """
    yield
    children = multiprocessing.active_children()
    for process in children:
        process.terminate()
        process.join()
    for each in gc.get_objects() if children else ():
        if type(each) is _MultiProcessingDataLoaderIter and not each._shutdown:
            each._shutdown = True
            for queue in each._index_queues:
                queue.cancel_join_thread()
                queue.close()
            if each._worker_pids_set:
                _utils.signal_handling._remove_worker_pids(id(each))


@pytest.fixture(autouse=True)
def _no_data_root(monkeypatch):
    """Tests say where their data is; what the shell exports must not matter."""
    monkeypatch.delenv("DATA_ROOT", raising=False)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> Path:
    """The synthetic flowers, drawn once. Read only: copy what you damage."""
    root = tmp_path_factory.mktemp("drawn") / "flowers"
    synthetic.draw(root)
    return root


@pytest.fixture(scope="session")
def real_flowers() -> Path:
    """The real Flowers-102, train and val images at least."""
    if REAL_FLOWERS is None:
        pytest.skip("the real Flowers-102 is not here: export DATA_ROOT=/path/to/its/parent")
    return REAL_FLOWERS


@pytest.fixture
def refused(tmp_path, capsys):
    """Calls a main with bad input and checks the whole promise; returns the error line."""

    def check(main, flags, *more) -> str:
        before = sorted(tmp_path.rglob("*"))
        output = tmp_path / "output"
        with warnings.catch_warnings(record=True) as shown:
            warnings.simplefilter("always")
            for hidden in (DeprecationWarning, ImportWarning, ResourceWarning):
                warnings.simplefilter("ignore", hidden)
            warnings.filterwarnings("ignore", module="PIL")  # as utils/data/image_files.py does
            code = main(flags, "--output_dir", output, *more)
        error = capsys.readouterr().err
        assert code == 2, error
        assert [str(warning.message) for warning in shown] == []  # more lines on stderr
        assert error.startswith("error: ")
        assert error.endswith("\n")
        assert error.count("\n") == 1
        assert "Traceback" not in error
        assert sorted(tmp_path.rglob("*")) == before
        return error

    return check


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, drawn) -> RunPaths:
    """A finished tiny training run on the drawn flowers. Read only."""
    output = tmp_path_factory.mktemp("finished")
    flags = f"--name run --dataset synthetic {TINY_TRAIN} {SUBSETS}"
    assert train(flags, "--data_root", drawn, "--output_dir", output) == 0
    return RunPaths(output, "run")
