"""Kill a small training at random moments, resume it each time, and compare it with one that nothing happened to.

python tools/kill_training.py --kills 200 --json kills.json

Every try is a process that trains, resumes if there is a state, and gets SIGKILL after a random time. After each kill
all files of the run are read. A training that finishes is compared with the uninterrupted one, and the next one begins.
The model has a few weights, so that most of the time goes into files; ``--whole`` runs ``dynamask train`` on a small
DynaMask, which takes about a hundred times as long.
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import timm  # noqa: F401  here and not in every process
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from dynamask import cli
from dynamask.cli import training  # noqa: F401
from dynamask.cli.common import add_json, run_command, write_json
from dynamask.data.loaders import TrainingLoader
from dynamask.engine.checkpoint import checkpoints, load_run, step_of
from dynamask.engine.run import Run
from dynamask.engine.train import train
from dynamask.files import replacing
from dynamask.structures import DynaMaskError
from dynamask.training_config import TrainConfig

STEPS, WEIGHTS = 60, "last.safetensors"
COMMAND = shlex.split(
    "train --data shapes:5:8 --model dynamask_mobilenetv2_fpn_small --iterations 12 --batch-size 1 --workers 0 "
    "--save-every 1 --log-every 1 --keep 2 --warmup 2 --fpn-channels 16 --region-channels 16 --switch-channels 4 "
    "--switch-hidden 8 --box-head-channels 32 --min-sizes 64 --test-min-size 64 --max-size 128 --rpn-pre-nms-train 50 "
    "--rpn-post-nms-train 30 --box-samples 16 --mask-rois 4"
)


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


class FewWeights(nn.Module):
    """A regression with noise from the global random generator, as training on pictures draws from it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 1))
        self.loss_weights = {"loss_fit": 1.0}

    def forward(self, images: list[Tensor], targets: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The named loss of a batch."""
        inputs = torch.stack([image[0, 0] for image in images])
        noisy = inputs + 0.1 * torch.randn(inputs.shape)
        return {"loss_fit": (self.layers(noisy)[:, 0] - inputs.sum(1)).square().mean()}


class Pictures(torch.utils.data.Dataset):
    """Sixteen pictures of noise, 8 × 8 pixels."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        pixels = torch.rand((3, 8, 8), generator=torch.Generator().manual_seed(index))
        return pixels, {"image_id": index, "boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}


def train_few_weights(out: Path) -> int:
    """Train :class:`FewWeights` in ``out``, from its newest state if it has one."""
    torch.manual_seed(0)
    config = TrainConfig(
        batch_size=2,
        iterations=STEPS,
        optimizer="adamw",
        warmup=5,
        schedule="cosine",
        ema_decay=0.9,
        workers=0,
        save_every=1,
        log_every=1,
    )
    run = Run(FewWeights(), TrainingLoader(Pictures(), config.batch_size), config, out)
    if checkpoints(out):
        run.resume()

    def save_weights(run: Run) -> None:
        with replacing(run.out / WEIGHTS) as stream:
            stream.write(save(run.final_state()))

    return 0 if train(run, on_save=save_weights, progress=False) else 1


def train_whole(out: Path) -> int:
    """Run ``dynamask train``, with ``--resume`` if there is a state."""
    return cli.main([*COMMAND, "--out", str(out), *(["--resume"] if checkpoints(out) else [])])


def start(act: Callable[[Path], int], out: Path, messages: Path) -> int:
    """Start a training in a process of its own; returns its id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        stream = os.open(messages, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        code = act(out)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
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
    ours, theirs = (load_file(folder / WEIGHTS) for folder in (out, straight))
    same = set(ours) == set(theirs) and all(torch.equal(ours[name], value) for name, value in theirs.items())
    return same and (out / "log.csv").read_bytes() == (straight / "log.csv").read_bytes()


def newest(out: Path) -> int:
    """The step of the newest state; -1 if there is none."""
    return max(map(step_of, checkpoints(out)), default=-1)


def attempt(act: Callable[[Path], int], out: Path, straight: Path, seconds: float, tally: Tally) -> None:
    """Start or resume the training in ``out`` and kill it after some seconds; what it left is checked and counted."""
    messages = out.with_name("messages")
    before, process = newest(out), start(act, out, messages)
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


def build_parser() -> argparse.ArgumentParser:
    """The flags of the tool."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="number of kills (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills (default: 0)")
    parser.add_argument("--whole", action="store_true", help="run `dynamask train` on a small DynaMask")
    add_json(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The program."""
    arguments = build_parser().parse_args(argv)
    return run_command("kill_training.py", lambda: _run(arguments), arguments.json)


def _run(arguments: argparse.Namespace) -> None:
    draw, tally = random.Random(arguments.seed), Tally()
    with tempfile.TemporaryDirectory() as folder:
        straight, out, messages = (Path(folder) / name for name in ("straight", "run", "messages"))
        act = train_whole if arguments.whole else train_few_weights
        began = time.monotonic()
        _, status = os.waitpid(start(act, straight, messages), 0)
        if status:
            raise DynaMaskError(f"the uninterrupted training failed: {messages.read_text()[-400:]}")
        whole = time.monotonic() - began
        while tally.kills < arguments.kills:
            attempt(act, out, straight, draw.uniform(0, whole), tally)
            shown = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in asdict(tally).items())
            print(f"\r{shown}", end="", file=sys.stderr)
    print(file=sys.stderr)
    write_json({"seconds_uninterrupted": whole, **asdict(tally)}, arguments.json)
    if tally.half_written or tally.lost or tally.stopped or tally.unequal:
        raise DynaMaskError("a killed training did not continue as if nothing had happened; see the counts above")


if __name__ == "__main__":
    sys.exit(main())
