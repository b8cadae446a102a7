"""utils/run/resume.py: from which state a run goes on, what must be the same, which best stays.

`tests/entrypoints/test_resume.py` has whole runs; this file could not have that name, too.
"""

import copy
import shutil
from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers import CHOICES, TINY_TRAIN, meter_of, read_scalars, train
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import FrozenConfigDict

from models.configs import get_config
from models.pretrained.profiles import GOOGLE
from utils.cli.flags import CHANGEABLE, experiment_of
from utils.cli.length import resolve_length
from utils.cli.resolve import parse_train, resolve_config
from utils.data_utils import RunPaths, checkpoint_paths
from utils.errors import InputError
from utils.files import write_json
from utils.run.best import forget_lost_best
from utils.run.checkpoint import load_checkpoint, save_checkpoint
from utils.run.resume import (
    PARTS,
    StartPoint,
    check_same_run,
    differences,
    open_resume_point,
    open_start_point,
)
from utils.run.run_images import RunImages, Used
from utils.run.scalars import EventLog
from utils.run.snapshot import Header, SnapshotStore, load_snapshot
from utils.run.tensor_file import load_archive, save_archive
from utils.training.learner import build_learner
from utils.training.progress import Progress
from utils.training.random_state import RandomState
from utils.training.step_loader import BadImages

NUM_SAMPLES = 200
DATA = {
    "dataset": {"name": "synthetic", "samples": NUM_SAMPLES, "checksum": "0" * 64},
    "carving": {"fraction": 0.25, "seed": 42},
    "selected_on": "val",
    "tiny_train_subset": "none",
    "tiny_infer_subset": {"name": "synthetic_tiny", "sha256": "1" * 64, "count": 4},
}
METRICS = {"accuracy": 0.5, "loss": 1.25, "step": 4, "split": "val", "checkpoint_id": "a" * 12}
FLAT = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3),
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats(allow_nan=False)
    | st.text("ab")
    | st.lists(st.integers(0, 3), max_size=3),
    max_size=6,
)
NESTED = st.dictionaries(st.text("xyz", min_size=1, max_size=3), FLAT, max_size=4)


@pytest.fixture
def paths(tmp_path) -> RunPaths:
    return RunPaths(tmp_path, "run")


NEW = ("--dataset=synthetic", "--model_type=testing", "--img_size=64", "--num_steps=100")


def config_of(paths: RunPaths, *flags: str, run: Header | None = None) -> FrozenConfigDict:
    """What `train.py` makes of its flags, for a new run or the one that is resumed."""
    place = ["--name", paths.name, "--output_dir", str(paths.output_dir)]
    if run is None:
        flags = parse_train([*place, *NEW, *flags], CHOICES)
    else:
        flags = parse_train([*place, "--resume", *flags], CHOICES, run=run._asdict())
    model = {"model": get_config("testing", 64).to_dict(), "normalization": GOOGLE.normalization}
    before = {} if run is None else run.config
    return resolve_config(flags, resolve_length(flags, NUM_SAMPLES, before), model)


def images_of(train: list[str], evaluated: list[str]) -> RunImages:
    """The images of a run, with digests that follow from their ids."""
    images = RunImages()
    images.classes = ["rose", "lily"]
    images.train, images.eval = (
        Used(ids, np.array([4 * sum(each.encode()) + 1 for each in ids], dtype=np.uint64))
        for ids in (train, evaluated)
    )
    images.trained = images.train.digests
    return images


def save_snapshot(paths: RunPaths, config: FrozenConfigDict, step: int = 4) -> None:
    """Save a snapshot with real parts."""
    events, bad_images = EventLog(), BadImages(3)
    events.logged, bad_images.ids = step, ["photo_002"]
    model = torch.nn.Linear(2, 2)
    model.no_weight_decay, model.layer_of = (lambda: ()), (lambda name: 0)
    parts = {
        "progress": Progress(step, step, {"": METRICS}, since_best=2),
        "scalars": events,
        "bad_images": bad_images,
        "images": images_of(["photo_001"], ["photo_002"]),
        "learner": build_learner(model, config),
        "meter": meter_of(step),
        "random_state": RandomState(torch.device("cpu")),
    }
    header = Header("mine", step, 0, 0, config.to_dict(), experiment_of(config), DATA)
    SnapshotStore(paths, 1).save(header, parts)


@pytest.fixture
def saved(paths) -> Header:
    """The header of a run's snapshot, as it is read from its file."""
    save_snapshot(paths, config_of(paths))
    return load_snapshot(paths.last, PARTS).header


@pytest.fixture
def check(paths, saved) -> Callable[..., dict]:
    """Whether the run may go on with these flags, and what differs then."""

    def call(*flags: str, data: dict = DATA) -> dict:
        config = config_of(paths, "--resume", *flags, run=saved)
        check_same_run(config, experiment_of(config), data, saved)
        return differences(saved.experiment, experiment_of(config))

    return call


class TestDifferences:
    @settings(max_examples=50)
    @given(values=NESTED)
    def test_are_none_after_a_file(self, tmp_path_factory, values):
        """Lists and tuples, and the order of keys, mean nothing."""
        path = tmp_path_factory.getbasetemp() / "values.bin"
        save_archive(path, values)
        loaded = load_archive(path)
        assert differences(values, loaded) == {}
        turned = {
            outer: {k: tuple(v) if isinstance(v, list) else v for k, v in reversed(inner.items())}
            for outer, inner in reversed(values.items())
        }
        assert differences(turned, loaded) == differences(loaded, turned) == {}

    @settings(max_examples=50)
    @given(values=NESTED, data=st.data())
    def test_are_exactly_what_was_changed(self, values, data):
        keys = [(outer, inner) for outer in values for inner in values[outer]]
        chosen = data.draw(st.sets(st.sampled_from(keys))) if keys else set()
        now = copy.deepcopy(values)
        for outer, inner in chosen:
            now[outer][inner] = "another"
        expected = {f"{o}.{i}": (values[o][i], "another") for o, i in chosen}
        assert differences(values, now) == expected
        assert differences(now, values) == {key: pair[::-1] for key, pair in expected.items()}

    def test_of_what_is_only_in_one_are_none_there(self):
        assert differences({"a": 1, "b": {"c": 2}}, {"b": {"d": 3}}) == {
            "a": (1, None),
            "b.c": (2, None),
            "b.d": (None, 3),
        }
        assert differences({"a": None}, {}) == {}


class TestSameRun:
    def test_is_resumed_with_the_same_flags(self, check):
        assert check() == {}

    @pytest.mark.parametrize(
        "flags",
        [
            ("--num_workers", "0"),
            ("--log_every", "3"),
            ("--save_every", "7"),
            ("--keep", "4"),
            ("--grad_checkpointing",),
            ("--device", "cpu"),
            ("--cache", "disk"),
            ("--allow_change", "num_steps,learning_rate"),
        ],
    )
    def test_is_resumed_with_flags_that_change_no_result(self, check, flags):
        assert check(*flags) == {}

    def test_is_refused_with_the_list_of_what_differs(self, check):
        with pytest.raises(InputError) as caught:
            check("--learning_rate", "0.1", "--seed", "7", "--optimizer", "adamw", "--tta", "none")
        assert str(caught.value) == (
            "--resume: the run was started otherwise: --learning_rate 0.1 (the run's: 0.03), "
            "--seed 7 (the run's: 42), --optimizer adamw (the run's: sgd); leave them out, or "
            "start another run"
        )

    def test_is_resumed_with_what_may_change(self, check):
        flags = ("--learning_rate", "0.1", "--max_grad_norm", "2", "--patience", "3")
        changes = check(*flags, "--allow_change", "learning_rate,max_grad_norm,patience,augment")
        assert changes == {
            "learning_rate": (0.03, 0.1),
            "max_grad_norm": (1.0, 2.0),
            "patience": (None, 3),
        }

    def test_names_what_was_not_allowed_alone(self, check):
        message = (
            r"otherwise: --weight_decay 0\.5 \(the run's: 0\.0\); leave it out, or allow the "
            r"change by --allow_change weight_decay$"
        )
        with pytest.raises(InputError, match=message):
            check(
                "--learning_rate", "0.1", "--weight_decay", "0.5", "--allow_change", "learning_rate"
            )

    @pytest.mark.parametrize("allowed", ["num_steps", "epochs"])
    @pytest.mark.parametrize(
        ("flags", "num_steps", "epochs"),
        [(("--num_steps", "150"), 150, 12.0), (("--num_steps", "50"), 50, 4.0)],
    )
    def test_may_have_another_length(self, check, allowed, flags, num_steps, epochs):
        assert check(*flags, "--allow_change", allowed) == {
            "num_steps": (100, num_steps),
            "epochs": (8.0, epochs),
        }

    def test_keeps_its_warm_up_when_it_gets_longer(self, check):
        message = r"--warmup_steps 20 \(the run's: 10\); .*--allow_change warmup_steps$"
        with pytest.raises(InputError, match=message):
            check("--num_steps", "200", "--warmup_steps", "20", "--allow_change", "num_steps")
        changes = check("--num_steps", "200", "--allow_change", "num_steps")
        assert changes.keys() == {"num_steps", "epochs"}

    @pytest.mark.parametrize("length", ["--num_steps 13", "--epochs 1"])
    def test_takes_no_warm_up_that_is_longer(self, check, length):
        """By steps that is known before the data, by epochs after."""
        allow = "--allow_change=num_steps,epochs,warmup_steps"
        with pytest.raises(InputError, match=r"--warmup_steps 50 is longer than the run, which ha"):
            check(*length.split(), "--warmup_steps", "50", allow)

    @pytest.mark.parametrize(("num_steps", "is_refused"), [(3, True), (4, False)])
    def test_that_is_past_its_end_is_refused(self, check, num_steps, is_refused):
        flags = ("--num_steps", str(num_steps), "--allow_change", "num_steps")
        if not is_refused:
            assert check(*flags)["num_steps"] == (100, num_steps)
            return
        with pytest.raises(InputError, match=r"has done 4 steps already, more than the 3 of"):
            check(*flags)

    def test_is_told_to_allow_only_what_can_be_allowed(self, check):
        with pytest.raises(InputError, match=r"; leave them out, or start another run$"):
            check("--seed", "7", "--learning_rate", "0.1")
        with pytest.raises(InputError, match="started otherwise") as caught:
            check("--num_steps", "20", "--learning_rate", "0.1")
        *_, named = str(caught.value).split()
        assert set(named.split(",")) <= set(CHANGEABLE)


class TestSameData:
    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"dataset": {**DATA["dataset"], "name": "csv"}}, r"dataset\.name synthetic -> csv; b"),
            ({"carving": None}, r"carving\.fraction 0\.25 -> None, carving\.seed 42 -> None"),
            ({"carving": {"fraction": 0.25, "seed": 1}}, r"carving\.seed 42 -> 1"),
            ({"tiny_train_subset": {"count": 4}}, r"tiny_train_subset none -> None, tiny_train_"),
            (
                {"tiny_infer_subset": {**DATA["tiny_infer_subset"], "sha256": "3" * 64}},
                r"tiny_infer_subset\.sha256 1+ -> 3+",
            ),
        ],
    )
    def test_must_be_there_whatever_may_change(self, check, changes, said):
        message = rf"^--resume: the data are not those of the run: {said}"
        for flags in ((), ("--allow_change", ",".join(CHANGEABLE)), ("--seed", "42")):
            with pytest.raises(InputError, match=message):
                check(*flags, data={**DATA, **changes})

    def test_may_have_other_images_if_that_is_allowed(self, check):
        data = {**DATA, "dataset": {**DATA["dataset"], "samples": 199, "checksum": "2" * 64}}
        message = (
            r"checksum 0+ -> 2+; bring them back, or resume with these by --allow_change data$"
        )
        with pytest.raises(InputError, match=message):
            check(data=data)
        assert check("--allow_change", "data", data=data) == {}


class TestOpenResumePoint:
    @pytest.fixture
    def open_from(self, paths, saved) -> Callable[..., StartPoint]:
        def call(*resume: str, name: str = "run") -> StartPoint:
            of = RunPaths(paths.output_dir, name)
            config = config_of(of, "--resume", *resume)
            return open_start_point(config, Progress(), open_resume_point(of, config.resume))

        return call

    def write_stamp(self, paths: RunPaths, **facts: object) -> None:
        write_json(paths.env_stamp, {"name": paths.name, **facts})

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("model", None),
            ("normalization", {"mean": [0.5] * 3, "std": [0.0] * 3}),
            ("num_steps", 0),
            ("epochs", -1.0),
            ("train_batch_size", "4"),
        ],
    )
    def test_refuses_a_config_that_cannot_be(self, paths, open_from, key, value):
        payload = load_archive(paths.last)
        save_archive(paths.last, {**payload, "config": {**payload["config"], key: value}})
        with pytest.raises(InputError, match=rf"^--resume: .*config has no usable {key}; name an"):
            open_from()

    def test_takes_the_newest_snapshot(self, paths, open_from):
        self.write_stamp(paths, run_id="mine", status="unfinished")
        resume, progress, events, bad_images, _ = open_from("--skip_bad_images", "5")
        assert resume.header.step == 4
        assert resume.stamp == {
            "name": "run",
            "run_id": "mine",
            "status": "unfinished",
            "sessions": [],
        }
        assert progress == Progress(4, 4, {"": METRICS}, since_best=2, saved=4)
        assert (events.logged, bad_images.ids, bad_images.allowed) == (4, ["photo_002"], 5)
        assert resume.states.keys() == {"learner", "meter", "random_state"}

    @pytest.mark.parametrize(
        "content",
        [None, b"", b"{", b"[]", b'{"run_id": 5}', b'{"sessions": [1]}'],
    )
    def test_takes_the_id_from_the_snapshot(self, paths, open_from, content):
        """Whatever became of the stamp, which is written again."""
        if content is not None:
            paths.env_stamp.write_bytes(content)
        assert open_from().resume.stamp["run_id"] == "mine"

    def test_takes_none_of_another_run(self, paths, open_from, caplog):
        """Either the snapshot or the stamp was copied there; the run before may still be there."""
        self.write_stamp(paths, run_id="another")
        with pytest.raises(
            InputError, match=r"last\.bin is of another run than \S*env_stamp.json; "
        ):
            open_from()
        shutil.copy(paths.last, paths.older(1))
        payload = load_archive(paths.last)
        save_archive(paths.older(1), {**payload, "run_id": "another", "step": 2})
        with caplog.at_level("WARNING", logger="fine_vit"):
            assert open_from().resume.header.step == 2
        assert "going back to" in caplog.text

    def test_brings_back_a_stamp(self, paths, open_from):
        """From the snapshot, with the starts that came after it."""
        stamp = {"timestamp": "now", "sessions": [{"from_step": 0}], "artifacts": {"a": "b"}}
        payload = load_archive(paths.last)
        save_archive(paths.last, {**payload, "stamp": stamp})
        expected = {**stamp, "run_id": "mine"}
        assert open_from().resume.stamp == expected
        self.write_stamp(paths, run_id="mine", sessions=[{"from_step": 1}])
        assert open_from().resume.stamp == {**expected, "name": "run"}
        later = [*stamp["sessions"], {"from_step": 4}]
        self.write_stamp(paths, run_id="mine", sessions=later)
        assert open_from().resume.stamp == {**expected, "name": "run", "sessions": later}

    @pytest.mark.parametrize("name", ["metrics", "predictions", "retention", "env_stamp"])
    @pytest.mark.parametrize("kind", ["folder", "symbolic link"])
    def test_replaces_nothing_of_the_users(self, paths, open_from, name, kind):
        path = getattr(paths, name)
        path.parent.mkdir(exist_ok=True)
        path.mkdir() if kind == "folder" else path.symlink_to(paths.last)
        with pytest.raises(InputError, match=rf"{path.name} is a {kind}, not the file of the run"):
            open_from()
        path.rmdir() if kind == "folder" else path.unlink()
        paths.predictions.parent.rmdir() if paths.predictions.parent.exists() else None
        paths.predictions.parent.touch()
        with pytest.raises(InputError, match="fiftyone is a file, not the folder of the run"):
            open_from()

    def test_goes_back_from_a_damaged_one(self, paths, open_from, caplog):
        save_snapshot(paths, config_of(paths, "--resume"), step=6)
        paths.last.write_bytes(paths.last.read_bytes()[:-1])
        with caplog.at_level("WARNING", logger="fine_vit"):
            assert open_from().progress.step == 4
        assert f"going back to {paths.older(1)}, step 4" in caplog.text

    def test_takes_an_older_snapshot_of_the_same_run(self, paths, open_from):
        save_snapshot(paths, config_of(paths, "--resume"), step=6)
        self.write_stamp(paths, run_id="mine", status="unfinished")
        assert open_from().progress.step == 6
        # By its own name: it is the newest.
        assert open_from(str(paths.last)).resume.chosen is None
        start = open_from(str(paths.older(1)))
        assert start.resume.chosen == paths.older(1)
        assert start.progress == Progress(4, 4, {"": METRICS}, since_best=2, saved=4)

    @pytest.mark.parametrize("there", [None, "finished"])
    def test_of_another_run_starts_a_new_one(self, paths, open_from, there):
        """With patience of its own: else it might end before its first evaluation."""
        other = RunPaths(paths.output_dir, "other")
        if there:
            self.write_stamp(other, run_id="theirs", status=there)
        resume, progress, events, bad_images, _ = open_from(str(paths.last), name="other")
        assert (resume.stamp, resume.chosen) == (None, None)
        assert progress == Progress(4)
        assert (events.logged, bad_images.ids) == (0, ["photo_002"])

    def test_of_another_run_does_not_replace_an_unfinished_one(self, paths, open_from):
        other = RunPaths(paths.output_dir, "other")
        self.write_stamp(other, run_id="theirs", status="unfinished")
        message = r"^--resume .*/run/.*last\.bin is of another run, and --name other is an unfinis"
        with pytest.raises(InputError, match=message):
            open_from(str(paths.last), name="other")

    def test_refuses_what_is_not_a_snapshot(self, paths, open_from):
        keep_best(paths, METRICS)
        with pytest.raises(InputError, match=r"ckpt\.bin is not a snapshot of a run"):
            open_from(str(paths.checkpoint), name="other")

    @pytest.mark.parametrize("name", PARTS)
    @pytest.mark.parametrize("state", [None, [], {}, {"step": "1"}, {"settled": [[1]]}])
    def test_refuses_a_part_that_cannot_be_used(self, paths, open_from, name, state):
        payload = load_archive(paths.last)
        save_archive(paths.last, {**payload, "parts": {**payload["parts"], name: state}})
        with pytest.raises(InputError, match=rf"last\.bin has no usable parts\.{name}; name a"):
            open_from()

    @pytest.mark.parametrize(
        ("name", "changes"),
        [
            ("progress", {"step": -1}),
            ("progress", {"best": {"": {**METRICS, "accuracy": float("nan")}}}),
            ("progress", {"best": {"": {}}}),
            ("scalars", {"pending": {"loss": "low"}}),
            ("scalars", {"logged": True}),
            ("meter", {"settled": [[1, float("inf"), 2.0, 4]]}),
            ("learner", {"model": {"w": [1.0]}}),
            ("learner", {"optimizer": {"state": {}, "param_groups": 3}}),
            ("random_state", {"ranks": [{"python": [3]}]}),
        ],
    )
    def test_refuses_values_that_cannot_be(self, paths, open_from, name, changes):
        payload = load_archive(paths.last)
        state = {**payload["parts"][name], **changes}
        save_archive(paths.last, {**payload, "parts": {**payload["parts"], name: state}})
        with pytest.raises(InputError, match=rf"no usable parts\.{name};"):
            open_from()


def keep_best(
    paths: RunPaths, metrics: dict, variant: str = "", config_hash: str = "0" * 64
) -> None:
    """Write a best checkpoint."""
    about = {
        "model_type": "testing",
        "model_config": {"img_size": 32, "patch_size": 16, "pool": "token"},
        "dataset": "synthetic",
        "classes": ["rose", "lily"],
        "img_size": 32,
        "preset": "vit",
        "carving": {},
        "class_depth": 0,
        "data_rules": 2,
        "trained_images": torch.tensor([1]),
        "val_images": torch.tensor([2]),
        "normalization": GOOGLE.normalization,
        "config_hash": config_hash,
    }
    path = checkpoint_paths(paths, variant).checkpoint
    save_checkpoint(path, about, metrics, {"w": torch.ones(2)})


class TestForgetLostBest:
    """Of a state of step 6, the best evaluation before it being that of step 4."""

    @pytest.fixture
    def forget(self, paths, caplog) -> Callable[..., tuple[dict, list[str]]]:
        """What is best after forgetting, and what is said."""

        def call(is_changed: bool = False, **best: dict) -> tuple[dict, list[str]]:
            named = {"" if variant == "raw" else variant: dict(of) for variant, of in best.items()}
            state = Progress(step=6, evaluated=6, best=named, since_best=5)
            caplog.clear()
            with caplog.at_level("WARNING", logger="fine_vit"):
                forget_lost_best(state, paths, is_changed, [{"config_hash": "0" * 64}])
            # What is evaluated anew has patience anew.
            is_lost = len(state.best) < len(best)
            assert (state.evaluated, state.since_best) == ((0, 0) if is_lost else (6, 5))
            return state.best, [r.getMessage() for r in caplog.records]

        return call

    @pytest.mark.parametrize("is_changed", [False, True])
    def test_keeps_the_one_that_is_there(self, paths, forget, is_changed):
        keep_best(paths, METRICS)
        assert forget(is_changed, raw=METRICS) == ({"": METRICS}, [])

    def test_keeps_it_for_a_later_one_of_the_same_flags(self, paths, forget):
        """Killed after a better evaluation and before its state: it will come again."""
        keep_best(paths, {**METRICS, "step": 8, "accuracy": 0.75})
        assert forget(raw=METRICS) == ({"": METRICS}, [])

    @pytest.mark.parametrize(
        ("there", "is_changed"),
        [
            ({"step": 8, "accuracy": 0.75}, True),
            ({"step": 2}, False),
            ({"step": 6}, False),
            ({"accuracy": 0.75}, False),
            ({"checkpoint_id": "b" * 12}, False),
        ],
    )
    def test_forgets_it_for_another_one(self, paths, forget, there, is_changed):
        keep_best(paths, {**METRICS, **there})
        step = {**METRICS, **there}["step"]
        best, lines = forget(is_changed, raw=METRICS)
        assert best == {}
        what = "is not the one that was kept at step 4"
        what = what if step == 4 else f"is of step {step}, not of step 4"
        assert lines == [f"warning: {paths.checkpoint} {what}; the best checkpoint starts anew"]

    @pytest.mark.parametrize("there", [{}, {"step": 8, "accuracy": 0.75}])
    def test_forgets_it_for_one_of_another_run(self, paths, forget, there):
        keep_best(paths, {**METRICS, **there}, config_hash="1" * 64)
        best, lines = forget(raw=METRICS)
        assert best == {}
        assert lines == [
            f"warning: {paths.checkpoint} is of another run; the best checkpoint starts anew"
        ]

    def test_forgets_one_that_is_missing_or_damaged(self, paths, forget):
        best, (line,) = forget(raw=METRICS)
        assert best == {}
        assert line.startswith(f"warning: checkpoint {paths.checkpoint} cannot be read (No such")
        assert line.endswith("; the best checkpoint starts anew")
        keep_best(paths, METRICS)
        paths.checkpoint.write_bytes(paths.checkpoint.read_bytes()[:-3])
        best, (line,) = forget(raw=METRICS)
        assert best == {}
        assert "ckpt.bin is truncated, damaged" in line

    @pytest.mark.parametrize(("lost", "stays"), [("", "ema"), ("ema", "")])
    def test_is_about_each_variant_by_itself(self, paths, forget, lost, stays):
        averaged = {**METRICS, "accuracy": 0.625}
        keep_best(paths, METRICS)
        keep_best(paths, averaged, "ema")
        both = {"": METRICS, "ema": averaged}
        assert forget(raw=METRICS, ema=averaged) == (both, [])
        checkpoint_paths(paths, lost).checkpoint.unlink()
        best, (line,) = forget(raw=METRICS, ema=averaged)
        assert best == {stays: both[stays]}
        assert checkpoint_paths(paths, lost).checkpoint.name in line


class TestNothingLeftToDo:
    """A state after the last evaluation, whose best checkpoint is not with it."""

    FLAGS = (
        f"--dataset synthetic {TINY_TRAIN} --tiny_train_subset synthetic_tiny "
        "--tiny_infer_subset synthetic_tiny"
    )

    def test_as_a_run_of_another_name(self, finished_run, drawn, tmp_path):
        code = train(
            f"--name other {self.FLAGS}",
            "--data_root",
            drawn,
            "--output_dir",
            tmp_path,
            "--resume",
            finished_run.last,
        )
        assert code == 0
        other = RunPaths(tmp_path, "other")
        assert other.metrics.read_bytes() == finished_run.metrics.read_bytes()

    def test_because_it_was_lost(self, finished_run, drawn, tmp_path):
        shutil.copytree(finished_run.output_dir, tmp_path / "output")
        paths = RunPaths(tmp_path / "output", finished_run.name)
        paths.checkpoint.unlink()
        code = train(
            f"--name run {self.FLAGS} --resume",
            "--data_root",
            drawn,
            "--output_dir",
            paths.output_dir,
        )
        assert code == 0
        assert paths.metrics.read_bytes() == finished_run.metrics.read_bytes()
        weights = load_checkpoint(paths.checkpoint).state_dict
        for name, expected in load_checkpoint(finished_run.checkpoint).state_dict.items():
            assert torch.equal(weights[name], expected), name
        assert read_scalars(paths.tensorboard) == read_scalars(finished_run.tensorboard)
