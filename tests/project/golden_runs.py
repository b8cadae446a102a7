"""Run a dozen tiny commands with the code of one folder, for the golden test and `compare_commits`.

    python tests/project/golden_runs.py TREE FOLDER

TREE holds `train.py` and `eval.py`. FOLDER is new; inputs and results come to lie in it, the
results of the command `NAME` in `FOLDER/out/NAME`. This file imports nothing of the project, so
that it runs the code of any commit.

Where a run is to be stopped, a hook of torch sends it the signal: after an optimizer step, or in
the forward pass of the first evaluated batch. So it always stops at the same place, whatever the
machine is doing and whatever the run logs.
"""

import importlib
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

from golden_inputs import write_inputs

ENDING_SECONDS = 120  # a process that takes longer hangs
STOPPED = 128 + signal.SIGTERM


class Call(NamedTuple):
    """One call of an entrypoint."""

    script: str  # "train" or "eval"
    flags: str  # without --name and --output_dir; paths are relative to the folder of the runs
    processes: int = 1
    stop: str = ""  # "step N": SIGTERM after N optimizer steps; "eval": in the first evaluation


_COMMON = "--eval_batch_size 2 --num_workers 0 --device cpu"
_TRAIN = (
    f"{_COMMON} --model_type testing --img_size 32 --num_steps 4 --eval_every 2 "
    "--train_batch_size 4"
)
_FLOWERS = "--dataset synthetic --data_root flowers"
_TINY = "--tiny_train_subset synthetic_tiny --tiny_infer_subset synthetic_tiny"
# Windows of 3 steps, evaluations every 4, states every 2: no two of them end at the same step.
_LONG = f"{_FLOWERS} {_TINY} {_TRAIN} --num_steps 10 --eval_every 4 --save_every 2 --log_every 3"
_EMA = f"{_LONG} --ema_decay 0.5 --gradient_accumulation_steps 2 --dropout 0.1"
_BROKEN = (
    f"--dataset folder --data_root broken {_TRAIN} --num_steps 8 --log_every 1 "
    "--skip_bad_images 2 --cache disk --preset transfg"
)
_TOGETHER = f"{_LONG} --train_batch_size 8 --eval_batch_size 3 --dropout 0.1"

RUNS: dict[str, tuple[Call, ...]] = {
    "plain": (Call("train", f"{_FLOWERS} {_TRAIN}"),),
    "again": 2 * (Call("train", f"{_FLOWERS} {_TINY} {_TRAIN} --num_steps 1"),),
    "parts": (
        Call(
            "train",
            f"{_FLOWERS} {_TINY} {_TRAIN} --img_size 48 --head parts --split overlap "
            "--slide_step 8 --contrastive_scope effective --gradient_accumulation_steps 2",
        ),
    ),
    "held_out": (
        Call("train", f"--dataset folder --data_root photos {_TRAIN} --no-export_logits"),
    ),
    "csv": (
        Call("train", f"--dataset csv --data_root photos.csv {_TRAIN} --class_weights balanced"),
    ),
    "foreign": (
        Call(
            "train",
            f"{_FLOWERS} {_TINY} {_TRAIN} --img_size 48 --pretrained timm.safetensors --freeze 1 "
            "--optimizer adamw --layer_decay 0.7 --learning_rate 1e-3 --weight_decay 0.1",
        ),
    ),
    "ema": (Call("train", _EMA, stop="step 3"), Call("train", f"{_EMA} --resume")),
    "mixup": (
        Call(
            "train",
            f"{_FLOWERS} {_TINY} {_TRAIN} --preset strong --mixup 0.4 --tta flip --num_workers 2 "
            "--gradient_accumulation_steps 2 --smoothing_value 0.1",
        ),
    ),
    "stopped_eval": (
        Call("train", _LONG, stop="eval"),
        Call("train", f"{_LONG} --resume"),
    ),
    "skip_bad": (Call("train", _BROKEN, stop="step 3"), Call("train", f"{_BROKEN} --resume")),
    "eval": (
        Call("eval", f"{_FLOWERS} {_COMMON} --checkpoint out/plain/plain/checkpoints/ckpt.bin"),
    ),
    "eval_parts": (
        Call(
            "eval",
            f"{_FLOWERS} {_COMMON} --eval_split test --tta flip --tiny_infer_subset ids.txt "
            "--checkpoint out/parts/parts/checkpoints/ckpt.bin",
        ),
    ),
    "two_processes": (
        Call("train", _TOGETHER, 2, stop="step 3"),
        Call("train", f"{_TOGETHER} --resume", 2),
    ),
    "three_processes": (Call("train", f"{_TOGETHER} --train_batch_size 6", 3),),
}


# --- Processes ------------------------------------------------------------------------------------

# Each is a fork of one that has imported torch: starting it takes a tenth of the time.
_CONTEXT = multiprocessing.get_context("forkserver")


def _stop_at(place: str) -> None:
    """Have this process send itself SIGTERM once, at a place as `Call.stop` names it."""
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    if place == "eval":

        def stop(module: torch.nn.Module, inputs: object) -> None:
            if not module.training:
                hook.remove()
                signal.raise_signal(signal.SIGTERM)

        hook = torch.nn.modules.module.register_module_forward_pre_hook(stop)
        return
    rest = [int(place.removeprefix("step "))]

    def count(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        rest[0] -= 1
        if rest[0] == 0:
            signal.raise_signal(signal.SIGTERM)

    register_optimizer_step_post_hook(count)


def _call(call: Call, name: str, environment: dict[str, str], output: str) -> None:
    """Do what `python SCRIPT FLAGS` does, with stdout and stderr into a file."""
    # Otherwise loaders would start by a fork server of their own, which would import torch again.
    multiprocessing.set_start_method(None, force=True)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.environ.update(environment)
    if call.stop:
        _stop_at(call.stop)
    where = ["--name", name, "--output_dir", f"out/{name}"]
    code = importlib.import_module(call.script).main([*where, *shlex.split(call.flags)])
    sys.stdout.flush()
    sys.exit(code)


def _keep_store(pipe: Connection) -> None:
    """Serve as the store of torchrun: say its port, and end when told."""
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    pipe.send(store.port)
    pipe.recv()


def _started(target: object, *args: object) -> BaseProcess:
    process = _CONTEXT.Process(target=target, args=args)
    process.start()
    return process


def _as_torchrun(rank: int, count: int, port: int) -> dict[str, str]:
    """The environment that torchrun would set."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RUN_ID": "golden",
    }


def _run(call: Call, name: str) -> None:
    """Do one call in as many processes as it says.

    Raises:
        SystemExit: one of them ended otherwise than it should; says what they printed.
    """
    output = Path(f"{name}.txt")
    ours, theirs = _CONTEXT.Pipe()
    store = _started(_keep_store, theirs) if call.processes > 1 else None
    environments = [{}]
    if store is not None:
        port = ours.recv()
        environments = [_as_torchrun(rank, call.processes, port) for rank in range(call.processes)]
    processes = [
        _started(_call, call, name, environment, str(output)) for environment in environments
    ]
    for process in processes:
        process.join(ENDING_SECONDS)
        process.kill()
        process.join()
    if store is not None:
        ours.send("end")
        store.join()
    codes = [process.exitcode for process in processes]
    expected = STOPPED if call.stop else 0
    if set(codes) != {expected}:
        raise SystemExit(
            f"{name}: {call.script}.py {call.flags} ended with {codes} instead of {expected}:\n"
            f"{output.read_text('utf-8')}"
        )


def run_all(tree: Path, folder: Path, python: str = sys.executable) -> None:
    """Run all commands with the code in `tree`; `folder` is made and holds inputs and results.

    Raises:
        RuntimeError: a command ended otherwise than it should; says what it printed.
    """
    environment = {
        **{name: value for name, value in os.environ.items() if name != "DATA_ROOT"},
        "OMP_NUM_THREADS": "1",  # the number of threads moves the last bits
        "PYTHONPATH": str(tree),
    }
    done = subprocess.run(
        [python, __file__, str(tree), str(folder)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the commands of {tree}: {done.stdout}")


def main(tree: Path, folder: Path) -> None:
    """Run all commands in this process's children; PYTHONPATH names `tree`."""
    folder.mkdir(parents=True)
    os.chdir(folder)
    write_inputs(folder)
    _CONTEXT.set_forkserver_preload(
        ["torch", "torchvision", "torch.utils.tensorboard", "train", "eval"]
    )
    for name, calls in RUNS.items():
        for call in calls:
            _run(call, name)


if __name__ == "__main__":
    main(*(Path(argument).resolve() for argument in sys.argv[1:]))
