"""`--pretrained NAME` and `hf:owner/repository`, against a server that speaks the hub's protocol.

What the client does is tried in this process, its settings replaced; whole runs have processes of
their own, where the client reads the settings from the environment.
"""

import errno
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from forked import Together, begin_unwatched, started
from helpers import REPO, TINY_TRAIN, evaluate, files_up_to, read_json, train
from hub_server import COMMIT, LARGE, HubServer, Mood
from huggingface_hub import constants
from huggingface_hub._tree_cache import TreeCacheEntry, write_tree_cache
from safetensors.torch import save
from test_pretrained_cli import HALF, OTHER, mean_and_std, our_weights

from models.build import build_model
from models.configs import get_config
from models.pretrained.zoo import ZOO
from scripts import get_weights
from utils import speed
from utils.data_utils import RunPaths
from utils.files import sha256_file
from utils.run.checkpoint import load_checkpoint

SUBSETS = "--tiny_train_subset synthetic_tiny --tiny_infer_subset synthetic_tiny"
BASE = f"--dataset synthetic {TINY_TRAIN} {SUBSETS} --num_steps 1 --eval_every 1"
# A row without a hash; 224 px, but a flag wins.
NAMED = f"{BASE.replace('--model_type testing ', '')} --pretrained augreg-ti16 --freeze backbone"


def timm_config(mean: list[float], **arguments: object) -> bytes:
    cfg = {"mean": mean, "std": [0.5, 0.5, 0.5]}
    config = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": cfg, **arguments}
    return json.dumps(config).encode()


@pytest.fixture(scope="module")
def small() -> dict[str, bytes]:
    """Files of a repository with weights of the `testing` model."""
    heads = {"model_args": {"num_heads": 4}}
    return {
        "config.json": timm_config(OTHER[0], **heads),
        "model.safetensors": save(our_weights()),
        "pytorch_model.bin": b"a pickle, never fetched",
    }


@pytest.fixture(scope="module")
def tiny() -> dict[str, bytes]:
    """Files as the repository of `augreg-ti16` has them, with random weights."""
    model = build_model(get_config("ViT-Ti_16"), 7)
    weights = {key: value.half() for key, value in model.state_dict().items()}
    return {"config.json": timm_config(HALF[0]), "model.safetensors": save(weights)}


@pytest.fixture
def hub(tmp_path_factory, monkeypatch):
    """A server, and the settings of the client, whose cache is empty."""
    server = HubServer(tmp_path_factory.mktemp("hub"))
    home = tmp_path_factory.mktemp("home")
    settings = {"HF_ENDPOINT": server.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    server.settings, server.cache = settings, home / "hub"
    yield server
    server.go_on.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def fetch(capsys):
    """Runs get_weights.py; returns its exit code, and the one line or what it printed."""

    def run(address: str) -> tuple[int, str]:
        capsys.readouterr()
        code = get_weights.main([address])
        out, err = capsys.readouterr()
        assert err.count("\n") == (1 if code else 0), err
        return code, err or re.sub(" {2,}", " ", out)

    return run


def rest(server: HubServer) -> list[str]:
    """What is half-written in the cache."""
    return [str(path) for path in server.cache.rglob("*incomplete*")]


# --- What the client does -------------------------------------------------------------------------


@pytest.mark.parametrize("mood", [{}, {"breaks": "cut"}, {"breaks": "stall"}], ids=str)
def test_weights_arrive_whole_whatever_the_connection_does(hub, fetch, small, mood):
    code, out = fetch(hub.add("me/small", small, **mood))
    assert code == 0
    assert f"commit {COMMIT}\n" in out
    path = hub.cache / "models--me--small" / "snapshots" / COMMIT / "model.safetensors"
    assert path.read_bytes() == small["model.safetensors"]
    assert (path.parent / "config.json").read_bytes() == small["config.json"]
    fetched = {"README.md", "config.json", "model.safetensors"}
    assert {each.name for each in path.parent.iterdir()} == fetched
    assert f"sha256 {sha256_file(path)}\n" in out
    assert "sha256_is the server's\n" in out
    assert "licence apache-2.0\n" in out
    assert rest(hub) == []


@pytest.mark.parametrize("name", ["model.safetensors", "other.safetensors"])
def test_what_is_in_the_cache_is_not_fetched_again_and_needs_no_network(
    hub, fetch, small, monkeypatch, name
):
    files = {"config.json": small["config.json"], name: small["model.safetensors"]}
    address = hub.add("me/small", files, licence="cc-by-nc-4.0")
    first = fetch(address)
    assert first[0] == 0
    hub.asked.clear()
    assert fetch(address) == first
    assert not any(each.startswith("GET /cdn/") for each in hub.asked)
    warning = "warning: hf:me/small does not answer; the cache has only other.safetensors of it\n"
    said = (0, (warning if name == "other.safetensors" else "") + first[1])
    for status in (429, 503):  # hash and licence are known without the server, too
        hub.moods["me/small"] = Mood(status=status)
        assert fetch(address) == said
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch(address) == said
    # Another tool has noted that the repository has more.
    more = {"pytorch_model.bin": TreeCacheEntry(blob_id="0" * 40, size=3)}
    write_tree_cache(str(hub.cache / "models--me--small"), COMMIT, more)
    assert fetch(address) == said
    code, said = fetch(f"{address}/two.npz")
    assert (code, "HF_HUB_OFFLINE is set, and" in said) == (2, True)


def test_addresses_may_name_revision_and_file(hub, fetch, small):
    weights = small["model.safetensors"]
    hub.add("me/many", {"a/one.safetensors": weights, "two.npz": weights})
    code, said = fetch("hf:me/many")
    assert code == 2
    assert "has several: a/one.safetensors, two.npz; add one: hf:me/many/FILE" in said
    code, out = fetch("hf:me/many@side%2Fbranch/a/one.safetensors")
    assert (code, "file a/one.safetensors\n" in out) == (0, True)
    code, said = fetch("hf:me/many/one.safetensors")
    assert (code, "there is no one.safetensors" in said) == (2, True)


@pytest.mark.parametrize(
    ("mood", "address", "says"),
    [
        ({"gated": 401}, "hf:me/small", "is gated: accept its licence at {url}/me/small, and set"),
        ({"gated": 403}, "hf:me/small", "is gated: accept its licence at {url}/me/small, and set"),
        ({}, "hf:me/small@v2", "hf:me/small@v2: me/small has no revision v2"),
        ({}, "hf:me/smal", "there is no {url}/me/smal, or HF_TOKEN may not see it"),
        ({"status": 403}, "hf:me/small", "{url}/me/small answered HTTP 403; is HF_TOKEN right?"),
        ({"status": 404}, "hf:me/small", "{url}/me/small answered HTTP 404; is HF_ENDPOINT right?"),
        ({}, "hf:me/small/pytorch_model.bin", "is not one of .safetensors, .npz; only files of"),
        ({}, "hf:me", "hf:me is not hf:owner/repository[@revision][/file]"),
        ({}, "hf:me/small/../x.npz", "has an empty part or dots"),
        ({}, "no/such.npz", "no/such.npz does not exist"),
        ({}, "dinov2-s15", "`scripts/get_weights.py --list`, did you mean 'dinov2-s14'"),
    ],
)
def test_what_the_user_has_to_change_is_one_line(hub, fetch, small, mood, address, says):
    hub.add("me/small", small, **mood)
    code, said = fetch(address)
    assert code == 2
    assert says.format(url=hub.url) in said
    assert rest(hub) == []


def test_a_repository_without_weights_is_refused(hub, fetch):
    code, said = fetch(hub.add("me/pickle", {"pytorch_model.bin": b"0" * 3000}))
    assert code == 2
    assert "has no weights in .safetensors or .npz, and nothing else is fetched" in said


def test_a_file_that_was_replaced_since_it_was_published_is_not_fetched(hub, fetch, small):
    hub.add(ZOO["dino-b16"].repository, small)
    code, said = fetch("dino-b16")
    assert code == 2
    assert "model.safetensors was replaced: it has SHA-256" in said
    assert f"{ZOO['dino-b16'].sha256} in the table; hf:timm/vit_base_patch16_224.dino/" in said
    assert not hub.cache.exists()


def test_what_arrives_damaged_is_not_kept(hub, fetch, small):
    address = hub.add("me/small", small, is_damaged=True)
    for _ in range(2):
        code, said = fetch(address)
        assert code == 1
        assert said.endswith("it arrived damaged and was not kept; run the same again\n")
        kept = {path.name for path in hub.cache.rglob("snapshots/*/*")}
        assert kept == {"README.md", "config.json"}
        assert not [path for path in hub.cache.rglob("blobs/*") if path.stat().st_size > LARGE]
    hub.add("me/small", small)
    assert fetch(address)[0] == 0


def test_what_is_damaged_in_the_cache_is_named_and_left_there(hub, fetch, small):
    address = hub.add("me/small", small)
    path = Path(re.search(r"path (.*)\n", fetch(address)[1])[1])
    content = path.read_bytes()
    path.resolve().write_bytes(content[:-1] + b"?")
    code, said = fetch(address)
    assert (code, f"it is damaged; remove {path.resolve()} and" in said) == (2, True)
    path.resolve().unlink()  # as it says
    assert fetch(address)[0] == 0
    assert path.read_bytes() == content


def test_weights_in_parts_are_refused_before_any_is_fetched(hub, fetch, small):
    parts = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    code, said = fetch(hub.add("me/parts", dict.fromkeys(parts, small["model.safetensors"])))
    assert (code, "has its weights in parts, which are not put together here" in said) == (2, True)
    assert not hub.cache.exists()


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"HF_ENDPOINT": "127.0.0.1:1"}, "HF_ENDPOINT 127.0.0.1:1 is no address"),
        ({"HF_ENDPOINT": "http://127.0.0.1:port"}, "a variable HF_... of the environment cannot"),
        ({"HF_HUB_ETAG_TIMEOUT": "ten"}, "a variable HF_... of the environment cannot be read"),
        ({"HF_TOKEN": "gehe\u00efm"}, "HF_TOKEN is no token"),
        ({"HF_HOME": __file__}, "are HF_HOME, HF_HUB_CACHE and SSL_CERT_FILE right?"),
        ({"SSL_CERT_FILE": "/nowhere"}, "HF_HUB_CACHE and SSL_CERT_FILE right?"),
    ],
    ids=str,
)
def test_a_setting_that_cannot_be_used_is_one_line(hub, small, setting, says):
    address = hub.add("me/small", small)
    command = [sys.executable, REPO / "scripts" / "get_weights.py", address]
    environment = {**os.environ, **hub.settings, **setting}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert says in ended.stderr


def test_an_unreachable_server_is_one_line(hub, fetch, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    code, said = fetch("augreg-ti16")
    assert code == 1
    assert f":{port} cannot be reached (" in said
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    code, said = fetch("augreg-ti16")
    assert code == 2
    assert f"HF_HUB_OFFLINE is set, and {hub.cache} does not have it; unset it" in said


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(hub, fetch, small, monkeypatch):
    address = hub.add("me/small", small)
    with files_up_to(len(small["model.safetensors"]) // 2):
        code, said = fetch(address)
    assert code == 1
    assert os.strerror(errno.EFBIG) in said
    assert rest(hub) == []
    usage = shutil.disk_usage(hub.folder)._replace(free=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    code, said = fetch(address)
    assert code == 1
    assert "Not enough free disk space to download the file" in said


@pytest.mark.parametrize(("signum", "said"), [(2, "interrupted"), (15, "terminated")])
def test_a_signal_ends_a_download_at_once_and_leaves_nothing_half_written(
    hub, small, tmp_path, signum, said
):
    address = hub.add("me/small", small, breaks="stall")
    settings = {**hub.settings, "HF_HUB_DOWNLOAD_TIMEOUT": "1000"}
    output = tmp_path / "said"
    argv = "scripts.get_weights.py", [address]
    process = started(*argv, output, settings, target=begin_unwatched)
    assert hub.stalled.wait(60)  # the client has the first half, and waits for more
    assert len(rest(hub)) == 1
    os.kill(process.pid, signum)
    process.join(300)
    assert process.exitcode == 128 + signum
    assert output.read_text("utf-8") == f"error: {said}\n"
    assert rest(hub) == []


def test_a_download_that_brings_next_to_nothing_is_given_up(hub, fetch, small, monkeypatch):
    monkeypatch.setattr(speed, "SLOW_SECONDS", 0.1)
    monkeypatch.setattr(speed, "SLOW_BYTES", 1e18)
    code, said = fetch(hub.add("me/small", small, breaks="trickle"))
    assert code == 1
    assert re.search(r"bytes came in 0 s, which is too slow .*; run the same again\n", said)
    assert sum(each.startswith("GET /cdn/") for each in hub.asked) == 1  # not tried again
    assert rest(hub) == []


def test_a_licence_that_forbids_commercial_use_is_said(hub, fetch, small):
    for licence in ("cc-by-nc-4.0", "CC-BY-NC-4.0", "fair-noncommercial-research-license"):
        code, out = fetch(hub.add("me/small", small, licence=licence))
        assert code == 0
        assert f"warning: the licence of me/small, {licence}, forbids commercial use\n" in out
        shutil.rmtree(hub.cache)
    page = b"---\nlicense: other\nlicense_name: apple-amlr\n---\n"
    out = fetch(hub.add("me/named", {**small, "README.md": page}))[1]
    assert "licence of me/named, other, apple-amlr, forbids commercial use\n" in out
    assert (
        "licence not stated\n"
        in fetch(hub.add("me/odd", {**small, "README.md": b"---\n{\n---\n"}))[1]
    )
    assert "licence not stated\n" in fetch(hub.add("me/other", small, licence=None))[1]
    assert "licence mit\n" in fetch(hub.add("me/list", small, licence=["mit"]))[1]


# --- Runs -----------------------------------------------------------------------------------------


def test_a_run_by_name_records_its_weights_and_hands_the_record_on(
    hub, tiny, drawn, tmp_path, monkeypatch
):
    hub.add(ZOO["augreg-ti16"].repository, tiny)
    where = ("--data_root", drawn, "--output_dir", tmp_path)
    assert train(f"--name a {NAMED} --num_steps 2", *where) == 0
    paths = RunPaths(tmp_path, "a")
    stamp, checkpoint = read_json(paths.env_stamp), load_checkpoint(paths.checkpoint)
    record = stamp["config"]["public_weights"]
    weights = hub.folder / ZOO["augreg-ti16"].repository / "model.safetensors"
    assert (
        record
        == checkpoint.public_weights
        == {
            "name": "augreg-ti16",
            "repository": "timm/vit_tiny_patch16_224.augreg_in21k",
            "commit": COMMIT,
            "file": "model.safetensors",
            "sha256": sha256_file(weights),
            "sha256_is": "the server's",
            "licence": "apache-2.0",
        }
    )
    assert (checkpoint.model_type, checkpoint.img_size) == ("ViT-Ti_16", 32)
    assert mean_and_std(checkpoint.normalization) == HALF
    # The same file by its path is the same experiment.
    beside = "--name b --model_type ViT-Ti_16 --freeze backbone --num_steps 2 --pretrained"
    flags = BASE.replace("--model_type testing ", "").replace("--num_steps 1 ", "")
    assert train(f"{flags} {beside}", weights, *where) == 0
    stamps = [stamp, read_json(RunPaths(tmp_path, "b").env_stamp)]
    assert len({each["config_hash"] for each in stamps}) == 1
    assert len({each["predictions_digest"] for each in stamps}) == 1
    # A resumed run needs neither file nor network, whether the weights are named again or not.
    shutil.rmtree(hub.cache)
    hub.asked.clear()
    for flags in (f"--pretrained augreg-ti16 --resume {paths.run}", f"--resume {paths.run}"):
        assert train(f"{flags} --allow_change num_steps --num_steps 3") == 0
    assert hub.asked == []
    assert load_checkpoint(paths.checkpoint).public_weights == record
    # What continues from its checkpoint keeps the record.
    assert (
        train(f"--name c {BASE} --model_type ViT-Ti_16 --pretrained", paths.checkpoint, *where) == 0
    )
    continued = RunPaths(tmp_path, "c").checkpoint
    assert load_checkpoint(continued).public_weights == record
    assert evaluate(f"--name e --checkpoint {continued} --num_workers 0", *where) == 0
    assert read_json(RunPaths(tmp_path, "e").env_stamp)["config"]["public_weights"] == record


def test_the_row_decides_but_for_mean_and_std_of_a_named_profile(hub, tiny, drawn, tmp_path):
    changed = {**tiny, "config.json": timm_config(OTHER[0])}
    hub.add(ZOO["augreg-ti16"].repository, changed)
    flags = f"--name a {NAMED} --pretrained_profile clip"
    assert train(flags, "--data_root", drawn, "--output_dir", tmp_path) == 0
    checkpoint = load_checkpoint(RunPaths(tmp_path, "a").checkpoint)
    assert checkpoint.model_config["layer_norm_eps"] == 1e-6  # the row's, not CLIP's
    assert checkpoint.normalization["mean"][0] == 0.48145466


class TestRefused:
    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            ({"mean": OTHER[0]}, "config.json beside it says mean (0.1, 0.2, 0.3), not (0.5, 0.5"),
            (
                {"mean": HALF[0], "model_args": {"act_layer": "quick_gelu"}},
                "config.json beside it says activation quick_gelu, not gelu as the table of",
            ),
        ],
    )
    def test_a_config_that_contradicts_the_row(self, hub, refused, tiny, drawn, arguments, says):
        changed = {**tiny, "config.json": timm_config(**arguments)}
        hub.add(ZOO["augreg-ti16"].repository, changed)
        error = refused(train, f"--name a {NAMED}", "--data_root", drawn)
        assert f"error: --pretrained hf:augreg-ti16: {says}" in error

    def test_a_model_type_that_contradicts_the_name(self, hub, refused):
        error = refused(train, f"--name a {BASE} --pretrained augreg-ti16")
        assert error == (
            "error: --pretrained hf:augreg-ti16 is a ViT-Ti_16, not a testing; use --model_type "
            "ViT-Ti_16\n"
        )
        assert hub.asked == []

    def test_another_model_type_than_a_repository_s(self, hub, refused, small, drawn):
        address = hub.add("me/small", small)
        flags = BASE.replace("testing", "ViT-Ti_16")
        error = refused(train, f"--name a {flags} --pretrained {address}", "--data_root", drawn)
        assert error.endswith(
            "mlp_dim 128, not 768, num_heads 4, not 3; use --model_type testing\n"
        )

    def test_a_repository_without_weights(self, hub, refused, drawn):
        address = hub.add("me/pickle", {"pytorch_model.bin": b"0" * 3000})
        error = refused(train, f"--name a {BASE} --pretrained {address}", "--data_root", drawn)
        assert "has no weights in .safetensors or .npz" in error

    def test_an_unknown_name(self, refused):
        error = refused(train, f"--name a {BASE} --pretrained augreg-b15")
        assert "did you mean 'augreg-b16'" in error


def test_an_existing_path_wins_over_a_name(hub, drawn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(our_weights(), "augreg-ti16")
    assert train(f"--name a {BASE} --pretrained augreg-ti16 --data_root {drawn}") == 0
    assert hub.asked == []


def test_of_two_processes_one_fetches(hub, small, drawn, tmp_path):
    address = hub.add("me/small", small)
    flags = f"--name a {BASE} --pretrained {address} --data_root {drawn} --output_dir {tmp_path}"
    flags = flags.replace("--eval_batch_size 2", "--eval_batch_size 4")
    together = Together(2, "train.py", flags.split(), tmp_path / "said", hub.settings)
    assert together.end() == [0, 0], together.said()
    assert sum(each.startswith("GET /cdn/") for each in hub.asked) == 1
    record = load_checkpoint(RunPaths(tmp_path, "a").checkpoint).public_weights
    assert (record["name"], record["commit"]) == ("me/small", COMMIT)


def test_two_processes_hear_together_that_weights_cannot_be_had(hub, small, drawn, tmp_path):
    address = hub.add("me/small", small, gated=401)
    flags = f"--name a {BASE} --pretrained {address} --data_root {drawn} --output_dir {tmp_path}"
    flags = flags.replace("--eval_batch_size 2", "--eval_batch_size 4")
    together = Together(2, "train.py", flags.split(), tmp_path / "said", hub.settings)
    assert together.end() == [2, 2], together.said()
    errors = [line for line in together.said().splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "is gated" in errors[0]
    assert not RunPaths(tmp_path, "a").run.exists()
