"""The input pipeline's flags through the real entrypoints: presets, flips, caches, bad images."""

import functools
import io
import multiprocessing
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import started
from helpers import (
    TINY_EVAL,
    TINY_TRAIN,
    evaluate,
    files_below,
    read_json,
    read_scalars,
    rows_of,
    train,
    write_checkpoint,
)
from PIL import Image
from torchvision.transforms import v2

from models.build import rebuild_model
from scripts import probe
from utils.data import loaders, presets
from utils.data.batches import sample_order
from utils.data.cache import open_cache
from utils.data.catalog import get_spec
from utils.data.decode import decode_resized
from utils.data.image_checks import MAX_DECODED_IN_CHECK
from utils.data.resized_images import FileImages
from utils.data.splits import Split
from utils.data_utils import RunPaths
from utils.dataset import open_split
from utils.evaluation.predictions import predictions_digest
from utils.run.checkpoint import Checkpoint, load_checkpoint

SIZE = 32  # of the model's input
BATCH = 6  # of evaluations; those of val are one batch
TRAIN = f"--dataset folder {TINY_TRAIN} --eval_batch_size {BATCH}"
EVAL = f"{TINY_EVAL} --eval_batch_size {BATCH}"
TINY_VAL = "--tiny_infer_subset folder_tiny"
SUBSETS = f"--tiny_train_subset folder_tiny {TINY_VAL}"
# More than are decoded before a run.
TRAIN_IMAGES, VAL_IMAGES = MAX_DECODED_IN_CHECK + 2, BATCH

VIT = presets.PRESETS["vit"]
AUGMENTATION = ("augment", "random_erasing", "mixup", "cutmix")
PRESETS = {
    "transfg": ("none", 0.0, 0.0, 0.0),
    "vit": ("none", 0.0, 0.0, 0.0),
    "strong": ("trivialaugment", 0.25, 0.2, 1.0),
}


def photo(seed: int, size: tuple[int, int] = (120, 90)) -> Image.Image:
    """Of smooth noise, larger than its resized image at 32 px."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def run(output: Path, root: Path, *flags: object, name: str = "run") -> RunPaths:
    """A training run that must succeed; its paths."""
    where = ("--data_root", root, "--output_dir", output)
    assert train(f"--name {name} {TRAIN}", *where, *" ".join(map(str, flags)).split()) == 0
    return RunPaths(output, name)


def again(output: Path, root: Path, checkpoint: Path, *flags: object) -> RunPaths:
    """An evaluation that must succeed; its paths."""
    where = ("--data_root", root, "--output_dir", output, "--checkpoint", checkpoint)
    assert evaluate(f"--name again {EVAL}", *where, *" ".join(map(str, flags)).split()) == 0
    return RunPaths(output, "again")


def digest_of(paths: RunPaths) -> str:
    return read_json(paths.env_stamp)["predictions_digest"]


def logits_of(paths: RunPaths) -> dict[str, np.ndarray]:
    return {row["sample_id"]: np.array(row["predictions"]["logits"]) for row in rows_of(paths)}


def assert_equal_runs(one: RunPaths, two: RunPaths) -> None:
    """To the last bit, and by the stamp the same experiment."""
    for path in ("checkpoint", "metrics", "per_class"):
        assert getattr(one, path).read_bytes() == getattr(two, path).read_bytes(), path
    assert digest_of(one) == digest_of(two)
    hashes = {read_json(paths.env_stamp)["config_hash"] for paths in (one, two)}
    assert len(hashes) == 1


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Two threads that wait for each other make runs as small as these slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Two classes of photos, so many that headers and end markers are all that is looked at."""
    root = tmp_path_factory.mktemp("photos")
    for split, count in (("train", TRAIN_IMAGES), ("val", VAL_IMAGES)):
        for i in range(count):
            path = root / split / "ab"[i % 2] / f"{split}_{i:03d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            size = (120 + i % 5, 85 + i % 7)  # so small that no JPEG is reduced while it is decoded
            path.write_bytes(encoded(photo(i + 1000 * (split == "val"), size), "JPEG"))
    return root


@pytest.fixture
def data(photos, tmp_path) -> Path:
    """A copy to be damaged; times of change are kept."""
    return Path(shutil.copytree(photos, tmp_path / "data"))


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory) -> Callable[..., RunPaths]:
    """A run of four steps under a preset, made when it is first asked for. Read only."""
    output, made = tmp_path_factory.mktemp("trained"), {}

    def ask(preset: str, flags: str = "") -> RunPaths:
        key = preset, flags
        if key not in made:
            made[key] = run(output, photos, f"--preset {preset} {flags}", name=f"run{len(made)}")
        return made[key]

    return ask


# --- Presets --------------------------------------------------------------------------------------


def test_a_preset_is_recorded_and_taken_from_the_checkpoint(trained, photos, tmp_path):
    preset = "transfg"
    paths = trained(preset)
    config = read_json(paths.env_stamp)["config"]
    assert config["preset"] == load_checkpoint(paths.checkpoint).preset == preset
    assert tuple(config[flag] for flag in AUGMENTATION) == PRESETS[preset]
    evaluated = again(tmp_path, photos, paths.checkpoint)
    assert evaluated.metrics.read_bytes() == paths.metrics.read_bytes()
    assert evaluated.per_class.read_bytes() == paths.per_class.read_bytes()
    assert digest_of(evaluated) == digest_of(paths)
    assert read_json(evaluated.env_stamp)["config"]["preset"] == preset


def test_a_preset_decides_how_an_evaluation_sees(trained, photos, tmp_path):
    """The weights of one with the view of another: else the checkpoint's word would not count."""
    checkpoint = load_checkpoint(trained("transfg").checkpoint)
    write_checkpoint(
        tmp_path / "other.bin", Checkpoint(**{**checkpoint._asdict(), "preset": "vit"})
    )
    other = again(tmp_path, photos, tmp_path / "other.bin")
    ours = logits_of(trained("transfg"))
    assert all(np.abs(row - ours[key]).max() > 1e-4 for key, row in logits_of(other).items())


def test_flags_by_hand_make_one_preset_of_another(trained, photos, tmp_path):
    flags = "--augment trivialaugment --random_erasing 0.25 --mixup 0.2 --cutmix 1"
    paths = run(tmp_path, photos, flags)
    ids = [read_json(each.metrics)["checkpoint_id"] for each in (paths, trained("strong"))]
    assert ids[0] == ids[1]
    config = read_json(paths.env_stamp)["config"]
    assert tuple(config[flag] for flag in AUGMENTATION) == PRESETS["strong"]


def test_mixed_images_train_a_part_model_without_the_contrastive_loss(photos, tmp_path):
    """The outputs of micro-batches are joined, and so must be the shares of the classes."""
    remedy = "--contrastive_weight 0 --contrastive_scope effective --gradient_accumulation_steps 2"
    run(tmp_path, photos, "--head parts --preset strong", remedy, SUBSETS)


# --- Mirror images --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flipped(photos, tmp_path_factory) -> RunPaths:
    return run(tmp_path_factory.mktemp("flipped"), photos, "--tta flip")


@pytest.fixture(scope="module")
def parts(photos, tmp_path_factory) -> RunPaths:
    return run(tmp_path_factory.mktemp("parts"), photos, "--head parts", SUBSETS)


class TestFlip:
    def test_is_recorded_and_evaluates_as_in_training(self, flipped, photos, tmp_path):
        assert read_json(flipped.metrics)["tta"] == "flip"
        assert read_json(flipped.env_stamp)["config"]["tta"] == "flip"
        evaluated = again(tmp_path, photos, flipped.checkpoint, "--tta flip")
        assert evaluated.metrics.read_bytes() == flipped.metrics.read_bytes()
        assert digest_of(evaluated) == digest_of(flipped)
        assert read_json(evaluated.env_stamp)["config"]["tta"] == "flip"
        assert read_json(again(tmp_path, photos, flipped.checkpoint).metrics)["tta"] == "none"

    def test_averages_the_logits_of_both_images(self, flipped, photos, tmp_path):
        """Against the model of the checkpoint and images that torchvision cropped."""
        checkpoint = load_checkpoint(flipped.checkpoint)
        model = rebuild_model(checkpoint.model_config, checkpoint.classes, checkpoint.state_dict)
        model.eval()
        mean, std = (
            torch.tensor(checkpoint.normalization[key])[:, None, None] for key in ("mean", "std")
        )
        # Large ones are reduced while they are decoded: torchvision's resize is not all of it.
        size_of, crop = functools.partial(VIT.eval_size, SIZE), v2.CenterCrop(SIZE)
        plain_rows = logits_of(again(tmp_path, photos, flipped.checkpoint))
        rows = rows_of(flipped)
        assert len(rows) == VAL_IMAGES
        differences = []
        for row in rows:
            image, _ = decode_resized(row["filepath"], size_of)
            image = (crop(image).float() / 255 - mean) / std
            with torch.no_grad():
                plain, mirrored = (
                    model(view[None]).logits[0].numpy() for view in (image, image.flip(-1))
                )
            differences.append(np.abs(plain - mirrored).max())
            given_ = np.array(row["predictions"]["logits"])
            np.testing.assert_allclose(given_, (plain + mirrored) / 2, atol=2e-6)
            np.testing.assert_allclose(plain_rows[row["sample_id"]], plain, atol=2e-6)
        assert max(differences) > 1e-4  # else nothing would be averaged

    def test_leaves_the_parts_to_the_image_itself(self, parts, photos, tmp_path):
        flipped = again(tmp_path, photos, parts.checkpoint, "--tta flip", TINY_VAL)
        pairs = list(zip(rows_of(parts), rows_of(flipped), strict=True))
        assert all(one["parts"] == two["parts"] for one, two in pairs)
        assert all(one["loss"] != two["loss"] for one, two in pairs)


# --- Caches and workers ---------------------------------------------------------------------------


def caches_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


class TestCachesAndWorkers:
    def test_change_no_byte(self, trained, photos, tmp_path):
        """Of the preset with everything random in it."""
        paths = run(tmp_path, photos, "--preset strong --cache disk --num_workers 2")
        assert_equal_runs(paths, trained("strong"))
        assert len(caches_in(tmp_path / ".cache")) == 2
        evaluated = again(tmp_path, photos, paths.checkpoint, "--cache none --num_workers 1")
        assert evaluated.metrics.read_bytes() == paths.metrics.read_bytes()
        assert digest_of(evaluated) == digest_of(paths)

    def test_are_read_by_a_second_run(self, trained, photos, tmp_path, capsys, monkeypatch):
        expected = trained("transfg")  # decodes
        capsys.readouterr()
        flags = f"--preset transfg --cache disk --cache_dir {tmp_path}/here/below"
        run(tmp_path / "out", photos, flags)
        assert not (tmp_path / "out" / ".cache").exists()
        built = caches_in(tmp_path / "here" / "below")
        assert len(built) == 2
        said = capsys.readouterr().out
        for folder in built:
            about = read_json(folder / "about.json")
            assert about["dataset"] == "folder"
            assert about["images"] == {"train": TRAIN_IMAGES, "val": VAL_IMAGES}[about["split"]]
            assert f"cache: {about['images']} images, 0.00 GB in {folder}" in said
        monkeypatch.setattr(FileImages, "load", lambda *_: pytest.fail("decoded again"))
        assert_equal_runs(run(tmp_path / "out", photos, flags, name="two"), expected)
        said = re.findall("^cache: reading (.*)$", capsys.readouterr().out, re.MULTILINE)
        assert sorted(said) == [str(folder) for folder in built]

    @pytest.mark.parametrize("happens", ["flipped", "cut", "removed"])
    def test_change_no_byte_if_a_cache_is_damaged(
        self, trained, photos, tmp_path, capsys, monkeypatch, happens
    ):
        """Before any worker reads it. It is said once, and the next run has a whole one."""

        def opened(*args: object) -> object:
            cache = open_cache(*args)
            if happens == "removed":
                shutil.rmtree(cache.folder)
            else:
                path = cache.folder / "pixels.bin"
                pixels = np.fromfile(path, dtype=np.uint8)
                pixels[:: len(pixels) // 50] ^= 16
                with path.open("r+b") as file:
                    file.write(pixels.tobytes())
                    file.truncate(len(pixels) // 2 if happens == "cut" else None)
            return cache

        flags = f"--cache disk --num_workers 2 --cache_dir {tmp_path}/c"
        monkeypatch.setattr(loaders, "open_cache", opened)
        paths = run(tmp_path, photos, "--preset strong", flags)
        captured = capsys.readouterr()
        said = re.findall("^warning: the cache in (.*) is damaged", captured.out, re.MULTILINE)
        assert captured.err == ""
        again(tmp_path / "two", photos, paths.checkpoint, flags)
        said_again = capsys.readouterr().out
        if happens != "removed" or multiprocessing.get_start_method() != "fork":
            assert len(set(said)) == len(said) == 2
            assert said_again.count("is damaged or gone: its images are decoded") == 1
        monkeypatch.undo()
        assert_equal_runs(paths, trained("strong"))
        whole = again(tmp_path, photos, paths.checkpoint, flags)
        assert f"cache: {VAL_IMAGES} images" in capsys.readouterr().out
        assert digest_of(whole) == digest_of(paths)


# --- Bad images -----------------------------------------------------------------------------------


def with_broken_scan(jpeg: bytes) -> bytes:
    begin = jpeg.index(b"\xff\xda") + 40
    return jpeg[:begin] + b"\xff\xd8" * 40 + jpeg[begin + 80 :]


def split_of(root: Path, name: str = "train") -> Split:
    return open_split(get_spec("folder"), root, name)


def met_in_step(step: int, batch: int = 4) -> int:
    """The position in train of the first sample of a step."""
    first = batch * (step - 1)
    ((_, position),) = sample_order(TRAIN_IMAGES, 42, first, first + 1)
    return position


def spoil(split: Split, position: int, damage: Callable = with_broken_scan) -> Path:
    """Damage that no check before the run sees."""
    path = Path(split.path_of(position))
    path.write_bytes(damage(path.read_bytes()))
    assert path.read_bytes().startswith(b"\xff\xd8\xff")
    assert path.read_bytes().endswith(b"\xff\xd9")
    return path


@pytest.fixture
def fails(tmp_path, capsys) -> Callable[..., str]:
    """Calls a main that fails after the first write; its one line, without `error: `."""

    def check(main: Callable, line: str, *more: object) -> str:
        code = main(line, "--output_dir", tmp_path / "out", *more)
        error = capsys.readouterr().err
        assert code == 1, error
        assert error.startswith("error: ")
        assert error.endswith("\n")
        assert error.count("\n") == 1
        assert "Traceback" not in error
        assert not [path for path in files_below(tmp_path) if path.suffix == ".tmp"]
        return error.removeprefix("error: ").removesuffix("\n")

    return check


@pytest.fixture(scope="module")
def spoiled(photos, tmp_path_factory) -> tuple[Path, Path]:
    """The photos with a bad one, which is met in step 3; and that one. Read only."""
    root = Path(shutil.copytree(photos, tmp_path_factory.mktemp("spoiled") / "data"))
    return root, spoil(split_of(root), met_in_step(3))


class TestBadImage:
    def test_ends_the_run_and_leaves_what_was_written(self, fails, spoiled, tmp_path):
        root, bad = spoiled
        line = f"--name run {TRAIN} --data_root {root} --num_workers 2"
        paths = RunPaths(tmp_path / "out", "run")
        error = fails(train, line)
        assert multiprocessing.active_children() == []
        assert error.startswith(f"image {bad} cannot be decoded (")
        assert f"; after step 2, last good checkpoint: {paths.checkpoint}" in error
        assert load_checkpoint(paths.checkpoint).step == read_json(paths.metrics)["step"] == 2
        assert len(rows_of(paths)) == VAL_IMAGES
        assert digest_of(paths) == predictions_digest(paths.predictions)
        skipped = read_json(paths.env_stamp)["skipped_images"]
        assert skipped == {"allowed": 0, "count": 0, "ids": []}
        evaluated = again(tmp_path, root, paths.checkpoint)  # val is whole
        assert evaluated.metrics.read_bytes() == paths.metrics.read_bytes()

    def test_among_features_is_named_without_flags_of_a_run_to_resume(
        self, fails, spoiled, trained
    ):
        """There is none: features are computed before the first snapshot."""
        root, bad = spoiled
        weights = f"--data_root {root} --pretrained {trained('vit').checkpoint} --num_workers 0"
        frozen = f"--name run {TRAIN} --freeze backbone --preset center {weights}"
        probed = f"--name p --dataset folder --model_type testing --img_size 32 {weights}"

        def run_probe(line: str, *more: object) -> int:
            return probe.main([*line.split(), *map(str, more)])

        for main, line in ((train, frozen), (run_probe, probed)):
            error = fails(main, line)
            assert error.startswith(f"image {bad} cannot be decoded (")
            assert "replace or remove it, or leave it out by --skip_bad_images 1; " in error

    def test_leaves_no_process_waiting(self, spoiled, tmp_path):
        """The traceback keeps the loader alive; Python ends its processes by SIGTERM, and waits."""
        root, bad = spoiled
        where = ["--data_root", str(root), "--output_dir", str(tmp_path / "out")]
        argv = ["--name", "run", *TRAIN.split(), *where, "--num_workers", "2"]
        process = started("train.py", argv, tmp_path / "output.txt")
        process.join(60)
        assert process.exitcode == 1
        assert f"error: image {bad} cannot be decoded (" in (tmp_path / "output.txt").read_text()


class TestCheckBeforeTheRun:
    def test_refuses_a_strip_that_only_the_resize_makes_too_large(
        self, refused, trained, data, tmp_path
    ):
        """As the preset resizes it: for an evaluation, and not for training."""
        strip = encoded(Image.new("RGB", (1, 70_000)), "PNG")
        Path(split_of(data).path_of(0)).write_bytes(strip)
        run(tmp_path / "out", data, "--num_steps 1")
        checkpoint = ("--checkpoint", trained("vit").checkpoint)
        bad = Path(split_of(data, "val").path_of(3))
        bad.write_bytes(strip)
        for main, line in (
            (train, f"--name run {TRAIN}"),
            (evaluate, f"--name again {EVAL}"),
        ):
            more = checkpoint if main is evaluate else ()
            error = refused(main, line, "--data_root", data, *more)
            assert f"1 of {VAL_IMAGES} images of split val cannot be used (first: {bad} is" in error
            assert "is 1x70000 pixels: resized for this run it would be 37x2590000" in error

    def test_uses_a_jpeg_without_its_end_marker_as_if_it_had_one(
        self, photos, data, tmp_path, capsys
    ):
        for path in (split_of(data).path_of(met_in_step(1)), split_of(data, "val").path_of(1)):
            Path(path).write_bytes(Path(path).read_bytes()[:-2])
        lacking = [
            run(tmp_path, data, flags, name=f"run{i}")
            for i, flags in enumerate(("", "--cache disk --num_workers 2"))
        ]
        said = "warning: JPEG files that lack only their end marker, and are used: 2 (first: "
        assert capsys.readouterr().out.count(said) == 2
        whole = run(tmp_path, photos, name="whole")
        ids = {read_json(each.metrics)["checkpoint_id"] for each in (*lacking, whole)}
        assert len(ids) == 1


class TestSkipBadImages:
    def test_leaves_one_out_and_says_so(self, spoiled, tmp_path, capsys):
        """Whatever loads it."""
        root, bad = spoiled
        sample_id = f"train/{bad.parent.name}/{bad.stem}"
        made = []
        for flags in ("--cache none --num_workers 2", "--cache disk --log_every 1"):
            more = f"--preset transfg --skip_bad_images 1 {flags}"
            paths = run(tmp_path, root, more, name=f"run{len(made)}")
            captured = capsys.readouterr()
            (warning,) = re.findall("^warning: left out (.*)$", captured.out, re.MULTILINE)
            assert warning.startswith(f"{sample_id}: image {bad} cannot be decoded (")
            assert re.search(r"^  skipped_images +1$", captured.out, re.MULTILINE)
            assert captured.err == ""
            skipped = read_json(paths.env_stamp)["skipped_images"]
            assert skipped == {"allowed": 1, "count": 1, "ids": [sample_id]}
            assert read_json(paths.env_stamp)["config"]["skip_bad_images"] == 1
            made.append(paths)
        assert_equal_runs(*made)

    def test_of_fewer_than_there_are_ends_the_run(self, fails, data, tmp_path):
        """Both are met: one in step 1, and the second, which is one too many, in step 4."""
        split = split_of(data)
        one, two = (spoil(split, met_in_step(step)) for step in (1, 4))
        flags = "--skip_bad_images 1 --cache disk --num_workers 2"
        error = fails(train, f"--name run {TRAIN} --data_root {data} {flags}")
        assert error.startswith(f"image {two} cannot be decoded (")
        assert "; it is bad image 2, --skip_bad_images allows 1; after step 3, last good" in error
        paths = RunPaths(tmp_path / "out", "run")
        skipped = read_json(paths.env_stamp)["skipped_images"]
        assert (skipped["allowed"], skipped["count"]) == (1, 1)
        assert skipped["ids"] == [f"train/{one.parent.name}/{one.stem}"]
        assert load_checkpoint(paths.checkpoint).step == 2

    def test_counts_those_of_evaluations_too(self, fails, data, tmp_path, capsys):
        val = split_of(data, "val")
        bad = spoil(val, 4)
        error = fails(train, f"--name run {TRAIN} --data_root {data}")
        assert error.startswith(f"image {bad} cannot be decoded (")
        made = [
            run(tmp_path, data, f"--skip_bad_images 1 {flags}", name=f"run{i}")
            for i, flags in enumerate(("--cache none --num_workers 2", "--cache disk"))
        ]
        assert_equal_runs(*made)
        said = capsys.readouterr().out
        assert said.count(f"warning: left out {val.ids[4]}: image {bad} cannot be decoded (") == 2
        metrics = read_json(made[0].metrics)
        assert (metrics["samples"], metrics["skipped_images"]) == (VAL_IMAGES - 1, 1)
        ids = [row["sample_id"] for row in rows_of(made[0])]
        assert ids == [name for name in val.ids if name != val.ids[4]]
        rows = made[0].per_class.read_text().splitlines()[1:]
        assert sum(int(row.split(",")[2]) for row in rows) == VAL_IMAGES - 1
        # The evaluation alone has the same images, and the same figures of them.
        evaluated = again(tmp_path, data, made[0].checkpoint, "--skip_bad_images 1")
        assert evaluated.metrics.read_bytes() == made[0].metrics.read_bytes()
        assert digest_of(evaluated) == digest_of(made[0])
        assert read_json(evaluated.env_stamp)["skipped_images"]["ids"] == [val.ids[4]]

    def test_is_one_number_for_training_and_evaluations(self, fails, data):
        """One of val is met after step 2, and one of train, which is one too many, in step 4."""
        spoil(split_of(data, "val"), 0)
        bad = spoil(split_of(data), met_in_step(4))
        error = fails(train, f"--name run {TRAIN} --data_root {data} --skip_bad_images 1")
        assert error.startswith(f"image {bad} cannot be decoded (")
        assert "; it is bad image 2, --skip_bad_images allows 1; after step 3" in error

    def test_is_asked_for_by_an_evaluation_itself(self, fails, trained, spoiled, tmp_path):
        root, bad = spoiled
        checkpoint = trained("vit").checkpoint
        flags = f"--data_root {root} --checkpoint {checkpoint} --eval_split train"
        line = f"--name again {EVAL} {flags}"
        error = fails(evaluate, line)
        assert error.startswith(f"image {bad} cannot be decoded (")
        assert error.endswith(f"; evaluating {checkpoint}, which is whole")
        evaluated = again(tmp_path, root, checkpoint, "--eval_split train --skip_bad_images 3")
        metrics = read_json(evaluated.metrics)
        assert (metrics["samples"], metrics["skipped_images"]) == (TRAIN_IMAGES - 1, 1)

    def test_lets_through_what_the_check_before_a_run_finds(self, refused, data, tmp_path, capsys):
        bad = Path(split_of(data).path_of(met_in_step(2)))
        bad.write_bytes(b"")
        line = f"--name run {TRAIN} --data_root {data}"
        said = f"1 of {TRAIN_IMAGES} images of split train cannot be used (first: {bad} is empty)"
        assert said in refused(train, line)
        run(tmp_path / "out", data, "--skip_bad_images 1")
        assert f"warning: left out train/{bad.parent.name}/{bad.stem}: " in capsys.readouterr().out
        bad = Path(split_of(data).path_of(met_in_step(3)))
        bad.write_bytes(b"")
        assert f"2 of {TRAIN_IMAGES} images" in refused(train, line, "--skip_bad_images", 1)


# --- Waiting --------------------------------------------------------------------------------------


def test_the_share_of_waiting_is_logged_and_summed_up(photos, tmp_path, capsys):
    flags = "--num_steps 5 --log_every 2 --eval_every 3 --num_workers 1"
    paths = run(tmp_path, photos, flags)
    scalars = read_scalars(paths.tensorboard)
    steps, shares = zip(*scalars["data/wait_fraction"], strict=True)
    assert list(steps) == [2, 3, 4, 5] == [step for step, _ in scalars["train/loss"]]
    assert all(0 < share < 1 for share in shares)
    out = capsys.readouterr().out
    (total,) = re.findall(r"^  data_wait_fraction +(\d\.\d{4})$", out, re.MULTILINE)
    # Of all seconds together, so between the least and the most.
    assert min(shares) - 1e-4 <= float(total) <= max(shares) + 1e-4
    assert "wait_fraction" not in paths.metrics.read_text("utf-8")  # no two runs wait alike
