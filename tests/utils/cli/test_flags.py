"""utils/cli/flags.py and parser.py: the table of flags, and what is derived from it."""

import hashlib
import json
import re
from pathlib import Path

import pytest
from helpers import CHOICES
from ml_collections import FrozenConfigDict

from models.configs import get_config
from utils.cli import flags, types
from utils.cli.flags import CHANGEABLE, FLAGS, GROUPS, Flag, experiment_of, help_of, may_change
from utils.cli.parser import parse
from utils.cli.resolve import parse_train, resolve_config, resolve_length
from utils.dist_util import config_hash
from utils.errors import InputError

REQUIRED = {
    "train": ["--name", "a"],
    "eval": ["--name", "a", "--checkpoint", "ckpt.bin"],
    "probe": ["--name", "a", "--pretrained", "model.safetensors"],
}
PROGRAMS = pytest.mark.parametrize("program", ["train", "eval"])
# The flags of the contract; a flag that is added need not be named here.
BOTH = (
    "name dataset data_root eval_split tiny_infer_subset img_size num_workers model_type "
    "eval_batch_size seed output_dir prefer_mps device export_logits tta cache cache_dir "
    "skip_bad_images"
)
HASHED = (
    "augment class_weights contrastive_margin contrastive_scope contrastive_weight cutmix dataset "
    "decay_type drop_path dropout ema_decay epochs eval_batch_size eval_every eval_split "
    "export_logits freeze gradient_accumulation_steps head img_size layer_decay learning_rate "
    "max_grad_norm mixup model_type momentum num_steps optimizer part_init patience pos_resample "
    "preset pretrained_profile random_erasing seed skip_bad_images slide_step smoothing_value "
    "split split_seed train_batch_size train_split tta val_fraction warmup_steps weight_decay"
)
CONTENT = "checkpoint pretrained tiny_infer_subset tiny_train_subset"
# What says only where things live, how fast they load, how often they are printed, and what memory
# they take.
NOT_HASHED = (
    "name output_dir data_root num_workers device prefer_mps log_every grad_checkpointing cache "
    "cache_dir recipe save_every keep resume allow_change"
)
MAY_CHANGE = (
    "num_steps epochs eval_every eval_batch_size learning_rate momentum weight_decay decay_type "
    "warmup_steps max_grad_norm gradient_accumulation_steps smoothing_value class_weights "
    "contrastive_weight contrastive_margin contrastive_scope augment random_erasing mixup cutmix "
    "skip_bad_images tta export_logits patience"
)
CONTRACT = {*HASHED.split(), *CONTENT.split(), *NOT_HASHED.split()}
OF_TYPE = {
    types.image_side: "img_size",
    types.positive_int: "num_steps epochs eval_every log_every slide_step save_every patience",
    types.batch: "train_batch_size eval_batch_size gradient_accumulation_steps",
    types.count: "warmup_steps skip_bad_images keep",
    types.workers: "num_workers",
    types.seed: "seed split_seed",
    types.positive: "learning_rate max_grad_norm",
    types.non_negative: "weight_decay contrastive_weight",
    types.alpha: "mixup cutmix",
    types.fraction: "momentum smoothing_value dropout drop_path",
    types.factor: "layer_decay",
    types.share: "val_fraction ema_decay",
    types.probability: "random_erasing",
    types.cosine: "contrastive_margin",
    bool: "prefer_mps export_logits grad_checkpointing",
    types.run_name: "name",
    types.frozen_blocks: "freeze",
}


def given(program: str, *argv: str) -> dict:
    return parse(program, [*REQUIRED[program], *argv], CHOICES)


class TestTable:
    def test_has_each_name_once_and_every_flag_of_the_contract(self):
        names = [flag.name for group in GROUPS.values() for flag in group]
        assert len(names) == len(set(names)) == len(FLAGS)
        assert set(names) >= CONTRACT
        for name in CONTRACT:
            program = flags.EVAL if name == "checkpoint" else flags.TRAIN
            programs = tuple(each for each in FLAGS[name].programs if each != "probe")
            assert programs == (flags.BOTH if name in BOTH.split() else program), name

    def test_gives_each_flag_its_type(self):
        for kind, names in OF_TYPE.items():
            assert all(FLAGS[name].kind is kind for name in names.split()), kind

    def test_says_what_enters_the_hash_and_what_may_change(self):
        for kind, names in (("value", HASHED), ("content", CONTENT), ("never", NOT_HASHED)):
            assert [name for name in names.split() if FLAGS[name].hashed != kind] == []
        assert CONTRACT & set(CHANGEABLE) == {*MAY_CHANGE.split()}

    def test_needs_only_values_that_other_flags_have(self):
        for flag in FLAGS.values():
            for name, values in flag.needs.items():
                assert set(values) <= set(FLAGS[name].kind if values else ()), flag.name
            assert not flag.excludes or FLAGS[flag.excludes].excludes == flag.name

    def test_has_defaults_that_their_own_type_takes(self):
        for flag in FLAGS.values():
            if isinstance(flag.kind, types.Number) and flag.default is not None:
                assert flag.kind(str(flag.default)) == flag.default, flag.name
            elif isinstance(flag.kind, tuple) and flag.kind and flag.default is not None:
                assert flag.default in flag.kind, flag.name


class TestParser:
    @PROGRAMS
    def test_returns_what_was_given_by_hand_alone(self, program):
        assert given(program).keys() == {text[2:] for text in REQUIRED[program] if "--" in text}
        values = given(program, "--seed", "42", "--no-prefer_mps", "--tta=flip")
        assert (values["seed"], values["prefer_mps"], values["tta"]) == (42, False, "flip")
        assert given(program, "--no-export_logits", "--export_logits")["export_logits"] is True

    @PROGRAMS
    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            (["--nam", "x"], "unrecognized arguments: --nam x, did you mean '--name'"),
            (["--eval-batch-size=4"], "--eval-batch-size=4, did you mean '--eval_batch_size'"),
            (["--tta", "flop"], "invalid choice: 'flop' .*, did you mean 'flip'"),
            (["--model_type", "vit b16"], ".*, did you mean 'ViT-B_16'"),
            (["--dataset", "flower_102"], ".*, did you mean 'flower102'"),
            (["--data_root", ""], "--data_root: '' is not a path"),
            (["--data_root", "~nobody-here/x"], ".*there is no user nobody-here"),
            (["--eval_batch", "2"], "unrecognized arguments"),
            (["stray"], "unrecognized arguments: stray"),
            (["--prefer_mps", "false"], "unrecognized arguments: false"),
            (["--img_size"], "--img_size: expected one argument"),
            (["--name", "-a"], "--name"),
            (["--name=-a"], "--name: '-a' is not a run name"),
        ],
    )
    def test_refuses_what_it_does_not_know_in_one_line(self, program, argv, message):
        with pytest.raises(InputError, match=f"{message}.* \\(see {program}.py --help\\)$"):
            given(program, *argv)

    @pytest.mark.parametrize(
        "flag", [flag.name for flag in FLAGS.values() if isinstance(flag.kind, tuple)]
    )
    def test_refuses_other_choices_and_lists_its_own(self, flag):
        program = FLAGS[flag].programs[0]
        first = next(iter(FLAGS[flag].kind or CHOICES[flag]))
        with pytest.raises(InputError, match=f"--{flag}: invalid choice: 'other' .*{first}"):
            given(program, f"--{flag}=other")

    def test_refuses_two_lengths(self):
        with pytest.raises(InputError, match=r"--epochs: not allowed with argument --num_steps"):
            given("train", "--num_steps", "1", "--epochs", "1")

    @PROGRAMS
    def test_requires_its_flags(self, program):
        argv = REQUIRED[program]
        for place in range(0, len(argv), 2):
            with pytest.raises(InputError, match=f"required: {argv[place]} "):
                parse(program, argv[:place] + argv[place + 2 :], CHOICES)

    def test_takes_a_resume_with_and_without_a_path(self):
        assert "resume" not in given("train")
        assert given("train", "--resume")["resume"] == "last"
        assert given("train", "--resume", "x.bin")["resume"] == Path("x.bin").resolve()

    @PROGRAMS
    def test_help_shows_groups_flags_and_defaults(self, program, capsys):
        with pytest.raises(SystemExit, match=r"^0$"):
            given(program, "--help")
        out, err = capsys.readouterr()
        assert err == ""
        shown = re.sub(r"-\s+", "-", re.sub(r"\s+", " ", out))
        for title, group in GROUPS.items():
            own = [flag for flag in group if program in flag.programs]
            assert (f"\n{title}:\n" in out) is bool(own)
            for flag in own:
                assert f"--{flag.name}" in out
                text = help_of(flag, program, tuple(CHOICES.get(flag.name, ())))
                assert re.sub(r"-\s+", "-", text) in shown, flag.name
        assert FLAGS["img_size"].default_in(program) == (224 if program == "train" else None)


def test_help_says_each_default_once():
    say = {
        program: {f.name: help_of(f, program, ()) for f in FLAGS.values()} for program in REQUIRED
    }
    for texts in say.values():
        assert all(text.count("(default: ") <= 1 for text in texts.values())
    assert say["train"]["prefer_mps"].endswith("(default: on)")
    assert say["train"]["img_size"].endswith("(default: 224)")
    assert say["eval"]["img_size"].endswith("(default: the checkpoint's)")
    assert "(default" not in say["train"]["name"]
    assert ", ".join(CHANGEABLE) in say["train"]["allow_change"]


class TestAllowChange:
    def test_takes_names_of_flags_with_and_without_dashes(self):
        for text in ("num_steps,tta", "--num_steps, --tta", " num_steps ,,tta,"):
            assert given("train", f"--allow_change={text}")["allow_change"] == "num_steps,tta"

    @pytest.mark.parametrize("text", ["", ",", "seed", "num_steps,seed", "keep", "steps"])
    def test_refuses_what_may_not_change(self, text):
        with pytest.raises(InputError, match=r"cannot change within a run; what can: .*num_steps"):
            given("train", f"--allow_change={text}")

    def test_frees_the_two_lengths_together(self):
        assert may_change(None) == set()
        assert may_change("tta") == {"tta"}
        assert may_change("epochs") == may_change("num_steps") == {"epochs", "num_steps"}


ARGV = "--name a --dataset synthetic --model_type testing --img_size 64"
TRAIN = parse_train(ARGV.split(), CHOICES)
DATA = {"data_root": "x", "eval_split": "val", "val_fraction": None, "split_seed": None}
MODEL = {
    "model": get_config("testing", 64).to_dict(),
    "normalization": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
}
CONFIG = resolve_config(TRAIN, DATA, resolve_length(TRAIN, 200), MODEL)


def hash_of(**changes: object) -> str:
    return config_hash(experiment_of(FrozenConfigDict({**CONFIG.to_dict(), **changes})))


def another(value: object) -> object:
    """A value of the same kind that is not `value`."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return f"{value}x"


class TestConfigHash:
    @pytest.mark.parametrize("key", [*sorted(CONFIG), "unknown"])
    def test_changes_with_every_field_of_the_experiment_alone(self, key):
        other = hash_of(**{key: another(CONFIG.get(key))})
        is_hashed = key not in FLAGS or FLAGS[key].hashed != "never"
        assert (other != hash_of()) is is_hashed

    @pytest.mark.parametrize("key", sorted(CONFIG.model))
    def test_changes_with_every_field_of_the_model(self, key):
        model = CONFIG.model.to_dict()
        assert hash_of(model={**model, key: another(model[key])}) != hash_of()

    def test_is_the_sha256_of_the_canonical_json_of_the_rest(self):
        hidden = [f.name for f in FLAGS.values() if f.hashed in ("never", "if_not_default")]
        rest = {k: v for k, v in CONFIG.to_dict().items() if k not in hidden}
        text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
        assert hash_of() == hashlib.sha256(text.encode()).hexdigest()
        backwards = FrozenConfigDict(dict(reversed(CONFIG.to_dict().items())))
        assert config_hash(experiment_of(backwards)) == hash_of()

    @pytest.mark.parametrize("key", CONTENT.split())
    def test_counts_files_by_content(self, tmp_path, monkeypatch, key):
        for name, content in (("one", b"same"), ("moved", b"same"), ("other", b"different")):
            (tmp_path / name).write_bytes(content)
        hashes = [hash_of(**{key: str(tmp_path / name)}) for name in ("one", "moved", "other")]
        assert hashes[0] == hashes[1]
        assert len({*hashes, hash_of()}) == 3
        # A relative path is a file too, but for subsets: those are absolute once resolved, and
        # named otherwise, whatever lies around.
        monkeypatch.chdir(tmp_path)
        is_file = hash_of(**{key: "one"}) == hashes[0]
        assert is_file is (key in ("checkpoint", "pretrained"))

    def test_can_leave_a_newer_flag_out_at_its_default(self, monkeypatch):
        needs = {"optimizer": ("adamw",)}
        flag = Flag("newer", types.count, 3, needs=needs, hashed="if_not_default")
        monkeypatch.setitem(FLAGS, "newer", flag)
        assert hash_of(newer=3) == hash_of(newer=None) == hash_of()  # None: without the other flag
        assert hash_of(newer=4) != hash_of()
