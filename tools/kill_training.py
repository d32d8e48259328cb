"""Kill a small training at random moments, resume it each time, and compare it with one that nothing happened to.

python tools/kill_training.py --kills 200 --json kills.json

Every try is a process that runs ``dynamask train`` and gets SIGKILL after a random time. After each kill all files of
the run are read, and the same command is started again, with ``--resume`` if there is a state. A training that finishes
is compared with the uninterrupted one, and the next one begins.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import timm  # noqa: F401  here and not in every process
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from dynamask import cli
from dynamask.cli import training  # noqa: F401
from dynamask.cli.common import add_json, run_command, write_json
from dynamask.engine.checkpoint import checkpoints, load_run, step_of
from dynamask.structures import DynaMaskError

STEPS = 12
COMMAND = (
    f"train --data shapes:5:8 --model dynamask_mobilenetv2_fpn_small --iterations {STEPS} --batch-size 1 --workers 0 "
    "--save-every 1 --log-every 1 --keep 2 --warmup 2 --fpn-channels 16 --region-channels 16 --switch-channels 4 "
    "--switch-hidden 8 --box-head-channels 32 --min-sizes 64 --test-min-size 64 --max-size 128 --rpn-pre-nms-train 50 "
    "--rpn-post-nms-train 30 --box-samples 16 --mask-rois 4"
).split()


@dataclass
class Tally:
    """What was counted.

    Attributes:
        kills: processes that ended by SIGKILL.
        trainings: trainings that finished after kills.
        half_written: files that could not be read after a kill.
        lost: kills after which the newest state was older than before.
        stopped: tries in which the command did not go on.
        unequal: finished trainings whose tensors or log differ from the uninterrupted one.
    """

    kills: int = 0
    trainings: int = 0
    half_written: int = 0
    lost: int = 0
    stopped: int = 0
    unequal: int = 0


def start(out: Path, messages: Path) -> int:
    """Start the training in a process of its own, with ``--resume`` if there is a state; returns its id."""
    more = ["--resume"] if checkpoints(out) else []
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        stream = os.open(messages, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        code = cli.main([*COMMAND, "--out", str(out), *more])
    finally:
        os._exit(code)


def unreadable(out: Path) -> list[str]:
    """Names of files of the run that cannot be read; partial files do not count, since nothing reads them."""
    found = []
    for path in sorted(out.glob("*")):
        try:
            if path.suffix == ".pt":
                load_run(path)
            elif path.suffix == ".safetensors":
                load_file(path)
            elif path.suffix == ".unreadable":
                found.append(path.name)
        except (DynaMaskError, SafetensorError, OSError):
            found.append(path.name)
    return found


def equal(out: Path, straight: Path) -> bool:
    """Whether two finished trainings have the same tensors, bit for bit, and the same log."""
    ours, theirs = (load_file(folder / "last.safetensors") for folder in (out, straight))
    same = set(ours) == set(theirs) and all(torch.equal(ours[name], value) for name, value in theirs.items())
    return same and (out / "log.csv").read_bytes() == (straight / "log.csv").read_bytes()


def newest(out: Path) -> int:
    """The step of the newest state; -1 if there is none."""
    return max(map(step_of, checkpoints(out)), default=-1)


def attempt(out: Path, straight: Path, messages: Path, seconds: float, tally: Tally) -> None:
    """Start or resume the training in ``out`` and kill it after some seconds; what it left is checked and counted."""
    before, process = newest(out), start(out, messages)
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status):
        tally.kills += 1
        tally.half_written += len(unreadable(out))
        tally.lost += newest(out) < before
    elif os.waitstatus_to_exitcode(status):
        tally.stopped += 1
        print(messages.read_text(errors="replace").splitlines()[-1:], file=sys.stderr)
        shutil.rmtree(out)
    else:
        tally.trainings += 1
        tally.unequal += not equal(out, straight)
        shutil.rmtree(out)


def main(argv: Sequence[str] | None = None) -> int:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="number of kills (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills (default: 0)")
    add_json(parser)
    arguments = parser.parse_args(argv)
    return run_command("kill_training.py", lambda: _run(arguments), arguments.json)


def _run(arguments: argparse.Namespace) -> None:
    draw, tally = random.Random(arguments.seed), Tally()
    with tempfile.TemporaryDirectory() as folder:
        straight, out, messages = (Path(folder) / name for name in ("straight", "run", "messages"))
        began = time.monotonic()
        _, status = os.waitpid(start(straight, messages), 0)
        if status:
            raise DynaMaskError(f"the uninterrupted training failed: {messages.read_text()[-400:]}")
        whole = time.monotonic() - began
        while tally.kills < arguments.kills:
            attempt(out, straight, messages, draw.uniform(0, whole), tally)
            shown = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in asdict(tally).items())
            print(f"\r{shown}", end="", file=sys.stderr)
    print(file=sys.stderr)
    write_json({"steps": STEPS, "seconds_uninterrupted": whole, **asdict(tally)}, arguments.json)
    if tally.half_written or tally.lost or tally.stopped or tally.unequal:
        raise DynaMaskError("a killed training did not continue as if nothing had happened; see the counts above")


if __name__ == "__main__":
    sys.exit(main())
