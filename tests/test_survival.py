"""Runs that survive: killed, asked to stop, without disk space, without a picture, or with numbers that blow up."""

import csv
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers.runs import (
    ROOT,
    SHORT,
    STEPS,
    Rectangles,
    Toy,
    arguments,
    assert_equal_runs,
    log_of,
    toy_run,
    write_blocks,
)

from dynamask import cli
from dynamask.cli.training import data_record
from dynamask.data import TrainingLoader
from dynamask.engine import train as engine
from dynamask.engine.checkpoint import checkpoints, load_newest_run, load_run, run_file, save_run
from dynamask.engine.log import RunLog
from dynamask.engine.run import Run
from dynamask.engine.train import train
from dynamask.structures import DynaMaskError


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_blocks(tmp_path_factory.mktemp("data"))


def last_line(capsys) -> str:
    """The last line on stderr that is no warning; the progress bar comes before it."""
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    return [line for line in lines if not line.startswith("dynamask: warning:")][-1]


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory) -> Path:
    """Folder of a training that nothing happened to."""
    out = tmp_path_factory.mktemp("straight") / "run"
    assert cli.main(arguments(data, out)) == 0
    return out


def test_an_undisturbed_run_logs_every_step_and_keeps_two_states(straight):
    assert [int(row["step"]) for row in log_of(straight)] == list(range(1, STEPS + 1))
    assert [path.name for path in checkpoints(straight)] == ["run-000008.pt", "run-000010.pt"]
    assert not list(straight.glob("*.partial"))


# Killed and asked to stop


def killed(command: list[str], log: Path, step: int) -> bool:
    """Start a training in a process and kill it once its log has a step; False if it was faster than that."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") > step):
            time.sleep(0.005)
    finally:
        process.kill()
    return process.wait() == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no SIGKILL")
def test_a_killed_run_continues_bit_for_bit(data, straight, tmp_path):
    out, step = tmp_path / "run", random.randrange(3, STEPS - 2)
    command = [sys.executable, "-m", "dynamask", *arguments(data, out)]
    for _ in range(4):
        shutil.rmtree(out, ignore_errors=True)
        if killed(command, out / "log.csv", step):
            break
    else:
        pytest.fail("the training always ended before it could be killed")
    with (out / "log.csv").open("a") as stream:
        stream.write("9,0.12")  # what a crash of the machine may leave
    run_file(out, 4).with_suffix(".pt.partial").write_bytes(b"half a state")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "--resume"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"killed at step {step}: {done.stderr}"
    assert_equal_runs(out, straight)
    assert not list(out.glob("*.partial"))


def after_step(monkeypatch, step: int, act) -> None:
    """Do something once, after a step's weights are updated but before the step is over."""
    usual = engine.train_step

    def train_step(run, images, targets):
        values = usual(run, images, targets)
        if run.step == step:
            act()
        return values

    monkeypatch.setattr(engine, "train_step", train_step)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_after_a_signal_the_step_is_finished_and_the_state_saved(data, straight, tmp_path, capsys, monkeypatch, name):
    number = getattr(signal, name)
    after_step(monkeypatch, 3, lambda: os.kill(os.getpid(), number))
    before = signal.signal(number, signal.default_int_handler)  # tests in the background may ignore it
    try:
        assert cli.main(arguments(data, tmp_path)) == (130 if name == "SIGINT" else 0)
        assert signal.getsignal(number) == signal.default_int_handler, "a second signal acts at once"
    finally:
        signal.signal(number, before)
    line = last_line(capsys)
    assert line.startswith(f"dynamask: {name} at step 3: the state is saved in {tmp_path}") and "--resume" in line
    assert [path.name for path in checkpoints(tmp_path)] == ["run-000002.pt", "run-000003.pt"]
    monkeypatch.undo()
    assert cli.main(arguments(data, tmp_path, "--resume")) == 0
    assert_equal_runs(tmp_path, straight)


def test_a_training_stops_between_steps_and_continues(tmp_path):
    whole = toy_run(tmp_path / "whole", iterations=6)
    assert train(whole, progress=False)
    steps: list[tuple[int, float]] = []
    run = toy_run(tmp_path / "paused", iterations=6)
    options = {"progress": False, "on_step": lambda r, values: steps.append((r.step, values["loss"]))}
    assert train(run, should_stop=lambda: run.step == 3, **options) is False
    assert run.step == 3 and load_newest_run(run.out)["step"] == 3
    assert train(run, should_stop=lambda: False, **options) is True
    assert [step for step, _ in steps] == [1, 2, 3, 4, 5, 6] and steps[0][1] > steps[-1][1]
    assert log_of(run.out) == log_of(whole.out) and torch.equal(run.model.weight, whole.model.weight)


def test_a_stop_before_the_first_step_leaves_a_state_to_resume(tmp_path):
    run = toy_run(tmp_path)
    assert train(run, progress=False, should_stop=lambda: True) is False
    assert load_newest_run(tmp_path)["step"] == 0


# States on the disk


def test_the_last_states_are_kept(tmp_path):
    train(toy_run(tmp_path, iterations=7, save_every=1, keep=3), progress=False)
    assert [path.name for path in checkpoints(tmp_path)] == ["run-000005.pt", "run-000006.pt", "run-000007.pt"]


def flipped(content: bytes) -> bytes:
    """One bit of the weights changed."""
    at = content.index(torch.tensor([7.0]).numpy().tobytes())  # the value of Toy.still
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize("damage", [lambda c: b"", lambda c: c[: len(c) // 2], lambda c: c[:-1], flipped])
def test_a_damaged_newest_state_gives_way_to_the_one_before(tmp_path, damage):
    whole, run = toy_run(tmp_path / "whole"), toy_run(tmp_path / "damaged")
    train(whole, progress=False)
    train(run, progress=False)
    newest = run_file(run.out, 4)
    newest.write_bytes(damage(newest.read_bytes()))
    resumed = toy_run(run.out)
    with pytest.warns(UserWarning, match=r"run-000004\.pt cannot be read .*continuing from .* run-000002\.pt"):
        resumed.resume()
    assert resumed.step == 2 and newest.with_name("run-000004.pt.unreadable").exists()
    train(resumed, progress=False)
    assert torch.equal(resumed.model.weight, whole.model.weight) and log_of(run.out) == log_of(whole.out)
    assert [path.name for path in checkpoints(run.out)] == ["run-000002.pt", "run-000004.pt"]


def test_no_readable_state_is_one_sentence(tmp_path):
    with pytest.raises(DynaMaskError, match="no run to resume"):
        load_newest_run(tmp_path)
    train(toy_run(tmp_path), progress=False)
    for path in checkpoints(tmp_path):
        torch.save({"step": 1}, path)
    with pytest.raises(DynaMaskError, match=r"run-000004.*not the state of a run.*nor any before it"):
        toy_run(tmp_path).resume()
    assert len(checkpoints(tmp_path)) == 2, "nothing is set aside while nothing takes its place"


def test_a_later_state_in_the_folder_is_not_spoilt(tmp_path):
    train(toy_run(tmp_path), progress=False)
    log = (tmp_path / "log.csv").read_text()
    with pytest.raises(DynaMaskError, match=r"holds run-000004\.pt already, and this run is at step 0"):
        train(toy_run(tmp_path), progress=False)
    assert (tmp_path / "log.csv").read_text() == log


def test_weights_are_written_after_a_kill_between_state_and_weights(tmp_path):
    train(toy_run(tmp_path), progress=False)
    resumed, saved = toy_run(tmp_path), []
    resumed.resume()
    assert train(resumed, on_save=lambda r: saved.append(r.step), progress=False) and saved == [4]


def test_other_settings_are_named_with_both_values_and_harmless_ones_pass(tmp_path):
    settings = {"train": {"lr": 0.1, "workers": 0, "keep": 2}, "model": {"names": ["a"] * 90}, "freeze": None}
    run = toy_run(tmp_path)
    run.settings = settings
    train(run, progress=False)
    other = toy_run(tmp_path)
    other.settings = {**settings, "train": {"lr": 0.2, "workers": 2, "keep": 9}, "freeze": "detector"}
    with pytest.raises(DynaMaskError, match=r"\(train\.lr 0\.1, now 0\.2; freeze None, now 'detector'\)"):
        other.resume()
    other.settings = {**settings, "model": {"names": ["b"] * 90}}
    with pytest.raises(DynaMaskError, match="model.names") as caught:
        other.resume()
    assert len(str(caught.value)) < 400 + len(str(tmp_path))
    other.settings = {**settings, "train": {"lr": 0.1, "workers": 3, "save_every": 1}, "new": "setting"}
    other.resume()
    assert other.step == 4


def test_annotations_that_have_changed_are_noticed(data, tmp_path):
    def recorded(*more: str) -> dict:
        return data_record(cli.build_parser().parse_args([*arguments(data, tmp_path, *more)]))

    run = toy_run(tmp_path)
    run.settings = recorded()
    train(run, progress=False)
    file = data / "annotations.json"
    content = file.read_text()
    try:
        file.write_text(content.replace('"bbox": [4, 7, 22, 30]', '"bbox": [4, 8, 22, 30]'))
        run.settings = recorded()
        with pytest.raises(DynaMaskError, match="the annotations have changed since the run in .* was started"):
            run.resume()
    finally:
        file.write_text(content)
    run.settings = recorded("--save-every", "3")
    run.resume()
    scenes = cli.build_parser().parse_args(["train", "--data", "shapes:1:9", "--data", str(data), "--out", "x"])
    assert data_record(scenes)["annotation_digests"] == run.settings["annotation_digests"]


def test_another_number_of_threads_is_noted(tmp_path):
    run = toy_run(tmp_path)
    run.save()
    state = load_run(run_file(tmp_path, 0))
    assert state["threads"] == torch.get_num_threads()
    save_run(tmp_path, {**state, "threads": 64}, keep=2)
    with pytest.warns(UserWarning, match="saved with 64 threads and continues with"):
        run.resume()


def test_the_log_loses_torn_repeated_and_later_rows(tmp_path):
    log = tmp_path / "log.csv"
    log.write_text("step,loss,lr\n1,0.5,1\n2,0.4,1\n2,0.4,1\n3,0.3\n4,0.2,1\n5,0.1,1\n6,0.")
    RunLog(tmp_path, 4).close()
    assert log.read_text() == "step,loss,lr\n1,0.5,1\n2,0.4,1\n4,0.2,1\n"
    RunLog(tmp_path, 0).close()
    assert not log.exists()


# A full disk


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def half_a_state(state, stream):
    stream.write(b"half")
    no_space()


@pytest.mark.parametrize(("owner", "name", "stand_in"), [(torch, "save", half_a_state), (os, "replace", no_space)])
def test_a_full_disk_leaves_what_was_saved(tmp_path, monkeypatch, owner, name, stand_in):
    run = toy_run(tmp_path, iterations=6)
    train(run, progress=False, should_stop=lambda: run.step == 3)
    before = {path.name: path.read_bytes() for path in checkpoints(tmp_path)}
    monkeypatch.setattr(owner, name, stand_in)
    with pytest.raises(DynaMaskError) as caught:
        train(run, progress=False)
    message = str(caught.value)
    assert "run-000004.pt cannot be written (the disk is full)" in message and "\n" not in message
    assert "run-000003.pt is intact" in message
    assert {path.name: path.read_bytes() for path in tmp_path.glob("run-*")} == before
    monkeypatch.undo()
    resumed = toy_run(tmp_path, iterations=6)
    resumed.resume()
    assert resumed.step == 3 and train(resumed, progress=False)


FULL = """
import sys, torch
from pathlib import Path
from dynamask.engine.checkpoint import save_run
from dynamask.files import replacing
from dynamask.structures import DynaMaskError
out = Path(sys.argv[1])
state = dict(step=1, weights=torch.ones(1000))
save_run(out, state, 2)
for write in (lambda: save_run(out, dict(step=2, weights=torch.ones(2_000_000)), 2), lambda: fill(out / "weights")):
    def fill(path):
        with replacing(path) as stream:
            stream.write(bytes(8_000_000))
    try:
        write()
    except DynaMaskError as error:
        print(error)
print(sorted(path.name for path in out.iterdir()))
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="the system cannot mount a small disk for one process")
def test_a_disk_that_is_really_full(tmp_path):
    script = 'mount -t tmpfs -o size=1m tmpfs "$1" || exit 77; exec "$2" -c "$3" "$1"'
    command = ["unshare", "--mount", "sh", "-c", script, "sh", str(tmp_path), sys.executable, FULL]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("no right to mount a small disk")
    assert done.returncode == 0, done.stderr
    state, weights, left = done.stdout.splitlines()
    assert "run-000002.pt cannot be written (the disk is full)" in state and "the disk is full" in weights
    assert left == "['run-000001.pt']"


def test_a_log_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    run = toy_run(tmp_path, save_every=1)
    monkeypatch.setattr(csv, "writer", no_space)
    with pytest.raises(DynaMaskError, match=r"log in .* cannot be written \(the disk is full\).*--resume"):
        train(run, progress=False)


# Pictures and numbers


@pytest.mark.parametrize(("damage", "workers"), [(Path.unlink, 0), (lambda p: p.write_bytes(p.read_bytes()[:99]), 1)])
def test_a_picture_lost_in_mid_run_loses_nothing(data, straight, tmp_path, capsys, monkeypatch, damage, workers):
    world, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(data, world)
    after_step(monkeypatch, 3, lambda: [damage(path) for path in (world / "images").iterdir()])
    assert cli.main(arguments(world, out, workers=workers)) == 2
    line = last_line(capsys)
    assert line.startswith(f"dynamask: error: picture {world / 'images'}") and "--resume continues from it" in line
    step = load_newest_run(out)["step"]
    assert step >= 3 and f"the state of step {step} is saved in {out}" in line
    monkeypatch.undo()
    shutil.copytree(data, world, dirs_exist_ok=True)
    assert cli.main(arguments(world, out, "--resume", workers=0)) == 0
    assert_equal_runs(out, straight)


@pytest.mark.parametrize("within", [True, False])
def test_an_error_in_a_step_or_after_it_saves_the_state(tmp_path, monkeypatch, within):
    whole, run = toy_run(tmp_path / "whole", save_every=100), toy_run(tmp_path / "run", save_every=100)
    train(whole, progress=False)

    def fails(*_):
        if run.step == 3:
            torch.rand(5)  # draws that the step that is repeated must not see
            raise RuntimeError("out of memory: tried to allocate 9 TB. Buy some")

    if within:
        usual = engine.train_step
        monkeypatch.setattr(engine, "train_step", lambda *given: (fails(), usual(*given))[1])
    with pytest.raises(DynaMaskError) as caught:
        train(run, progress=False, on_step=None if within else fails)
    assert str(caught.value) == (
        "step 3 failed (RuntimeError: out of memory: tried to allocate 9 TB); "
        f"the state of step 3 is saved in {run.out}, and --resume continues from it"
    )
    monkeypatch.undo()
    resumed = toy_run(run.out, save_every=100)
    resumed.resume()
    assert resumed.step == 3 and train(resumed, progress=False)
    assert torch.equal(resumed.model.weight, whole.model.weight) and log_of(run.out) == log_of(whole.out)


def test_a_loss_that_is_not_finite_leaves_the_last_state(tmp_path):
    run = toy_run(tmp_path)
    with pytest.raises(DynaMaskError, match=r"loss_edge is not finite at step 3 .*the state of step 2 is intact"):
        train(run, on_step=lambda *_: setattr(run.model, "broken", run.step == 3 and "loss_edge"), progress=False)
    assert [path.name for path in checkpoints(tmp_path)] == ["run-000002.pt"]
    resumed = toy_run(tmp_path)
    resumed.resume()
    assert train(resumed, progress=False)


def test_neither_a_gradient_nor_weights_that_are_not_finite_are_kept(tmp_path):
    run = toy_run(tmp_path, clip_norm=0.0)
    run.model.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(DynaMaskError, match=r"the gradient is not finite at step 0 \(pictures 10"):
        train(run, progress=False)
    assert run.model.weight.tolist() == [2.0, -1.0] and not checkpoints(tmp_path)
    with torch.no_grad():
        run.model.weight[0] = float("nan")
    with pytest.raises(DynaMaskError, match=r"weights are not finite after step 0 \(weight\).*no state was saved"):
        run.save()
    assert not checkpoints(tmp_path)


def test_only_a_first_batch_that_fails_leaves_no_state(tmp_path):
    class Broken(Rectangles):
        def __getitem__(self, index):
            raise DynaMaskError("picture x.png is truncated")

    run = Run(Toy(), TrainingLoader(Broken(), 2), SHORT, tmp_path)
    with pytest.raises(DynaMaskError) as caught:
        train(run, progress=False)
    assert str(caught.value) == "picture x.png is truncated" and not checkpoints(tmp_path)
