"""Several processes and micro-batches: gradients, losses and AP of one process with the joint batch."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers.joint_problems import OBJECTS, PROBLEMS, Step, evaluation, splits, step
from helpers.runs import ROOT, arguments, assert_equal_runs, toy_run, write_blocks

from dynamask.engine.checkpoint import load_newest_run
from dynamask.engine.distributed import SINGLE_PROCESS, Ranks, joined
from dynamask.structures import DynaMaskError


@pytest.fixture(scope="module")
def small_data(tmp_path_factory) -> Path:
    return write_blocks(tmp_path_factory.mktemp("data"))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """Environment variables of a process that torchrun starts."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return {**os.environ, **{k: str(v) for k, v in numbers.items()}, "MASTER_ADDR": "127.0.0.1", "PYTHONPATH": paths}


@pytest.fixture(scope="module")
def joint(tmp_path_factory) -> list[dict]:
    """The results of two gloo processes by rank."""
    out, port = tmp_path_factory.mktemp("ranks"), free_port()
    command = [sys.executable, "-m", "helpers.joint_problems", str(out)]
    processes = [subprocess.Popen(command, cwd=ROOT, env=environment(rank, 2, port)) for rank in range(2)]
    try:
        assert [process.wait(timeout=300) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    return [torch.load(out / f"{rank}.pt", weights_only=False) for rank in range(2)]


def assert_same_step(found: Step, expected: Step) -> None:
    """Equal losses and shares, and gradients equal to 1e-5 of the largest."""
    (values, gradients), (wanted, references) = found, expected
    assert list(values) == list(wanted)
    assert values == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    largest = max(float(reference.abs().max()) for reference in references.values())
    for name, reference in references.items():
        torch.testing.assert_close(gradients[name], reference, rtol=1e-5, atol=1e-5 * max(largest, 1e-3), msg=name)


@pytest.mark.parametrize("name", PROBLEMS)
def test_micro_batches_take_the_step_of_the_joint_batch(tmp_path, name):
    expected = step(tmp_path, name)
    for accumulate in (2, 4):
        assert_same_step(step(tmp_path, name, accumulate=accumulate), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
def test_two_processes_take_the_step_of_the_joint_batch(joint, tmp_path, name):
    expected = step(tmp_path, name)
    for accumulate in splits(name):
        for rank in range(2):
            assert_same_step(joint[rank]["steps"][name, accumulate], expected)


@pytest.mark.parametrize("name", ["paper, uneven", "solov2, uneven"])
def test_a_mean_of_the_parts_own_means_is_another_step(tmp_path, name):
    """Shows that the test above distinguishes joint means."""
    _, whole = step(tmp_path, name)
    model, images, targets = PROBLEMS[name]()
    for half in (slice(0, 2), slice(2, 4)):
        losses = model(images[half], targets[half])
        (sum(loss * model.loss_weights[key] for key, loss in losses.items()) / 2).backward()
    largest = max(float(gradient.abs().max()) for gradient in whole.values())
    worst = max(float((p.grad - whole[key]).abs().max()) for key, p in model.named_parameters() if key in whole)
    assert worst > 1e-2 * min(1.0, largest)


@pytest.mark.parametrize(("name", "direct"), [("solov2", []), ("sodar", ["loss_direct"])])
def test_one_stage_problems_have_the_losses_of_their_models(tmp_path, name, direct):
    for objects in OBJECTS:
        values, _ = step(tmp_path, f"{name}, {objects}")
        names = [key for key in values if key.startswith("loss")]
        assert names == ["loss", "loss_category", "loss_dice", *direct]
        assert (values["loss_dice"] > 0.1) == (objects != "none") and values["loss_category"] > 0


def test_a_one_stage_model_in_bf16_takes_nearly_the_same_step(tmp_path):
    exact, _ = step(tmp_path, "sodar, uneven", accumulate=2)
    values, gradients = step(tmp_path, "sodar, uneven", accumulate=2, precision="bf16")
    assert values == pytest.approx(exact, rel=0.05)
    assert all(gradient.isfinite().all() and gradient.dtype == torch.float32 for gradient in gradients.values())


def test_the_budget_that_holds_jointly_costs_nothing_in_any_part(tmp_path):
    values, _ = step(tmp_path, "slack, uneven", accumulate=2)
    assert values["loss_budget"] == 0 and values["mean_macs"] < values["target_macs"]


@pytest.mark.slow
def test_evaluation_shared_by_two_processes_equals_that_of_one(joint):
    expected = evaluation()
    assert expected[0]["segm"]["AP"] > 0.3
    assert joint[0]["evaluation"] == joint[1]["evaluation"] == expected


@pytest.mark.slow
def test_an_error_in_one_process_is_raised_in_all(joint):
    first, second = joint[0]["failing"], joint[1]["failing"]
    assert first[:2] == ["ReportedElsewhereError: process 1 refuses", "DynaMaskError: process 0 refuses"]
    assert second[:2] == ["DynaMaskError: process 1 refuses", "ReportedElsewhereError: process 0 refuses"]
    assert first[2:] == second[2:] == ["True", "False"]
    assert joint[0]["sum"] == joint[1]["sum"] == [2.0, 1.0]
    assert joint[0]["from first"] == joint[1]["from first"] == "made by 0"
    assert joint[0]["shares"] + joint[1]["shares"] == [0, 1, 2, 3, 4]


def test_without_torchrun_a_process_is_alone():
    with joined("cpu", {}) as ranks:
        assert ranks is SINGLE_PROCESS and ranks.first and ranks.device("cuda") == "cuda"
        assert ranks.sum(torch.ones(2)).tolist() == [1, 1] and ranks.gather("x") == ["x"]
    with joined("cpu", {"WORLD_SIZE": "1", "RANK": "0"}) as ranks:
        assert ranks is SINGLE_PROCESS
    assert Ranks(3, 8, 1).device("cuda") == "cuda:1" and Ranks(3, 8, 1).device("cpu") == "cpu"


@pytest.mark.parametrize(
    ("device", "changed", "message"),
    [
        ("cpu", {"MASTER_ADDR": None, "LOCAL_RANK": None}, "LOCAL_RANK, MASTER_ADDR is not set; start several"),
        ("mps", {}, "--device mps is for one process"),
        ("cuda:1", {}, "is one GPU for 2 processes; give --device cuda"),
        ("cuda", {"LOCAL_RANK": "99"}, "has no GPU"),
    ],
)
def test_an_environment_that_cannot_work_is_one_sentence(device, changed, message):
    values = {**environment(0, 2, 1), **changed}
    values = {name: value for name, value in values.items() if value is not None}
    with pytest.raises(DynaMaskError, match=message), joined(device, values):
        pass


# The command


def run_command(words: list[str], size: int = 2) -> list[subprocess.Popen]:
    """Start a command in several processes, as torchrun does; stderr goes to pipes."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, "-m", "dynamask", *words],
            cwd=ROOT,
            env=environment(rank, size, port),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def ended(processes: list[subprocess.Popen]) -> tuple[list[int], list[list[str]]]:
    """Exit codes and the lines on stderr that are neither a warning nor the bar, by process."""
    try:
        texts = [process.communicate(timeout=400)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    printed = [[line for line in t.replace("\r", "\n").splitlines() if line.startswith("dynamask: ")] for t in texts]
    lines = [[line for line in own if not line.startswith("dynamask: warning:")] for own in printed]
    return [process.returncode for process in processes], lines


def stop_one(processes: list[subprocess.Popen], log: Path, step: int) -> None:
    """Ask the second process alone to end once the log has a step."""
    while processes[0].poll() is None and not (log.exists() and log.read_bytes().count(b"\n") > step):
        time.sleep(0.005)
    processes[1].send_signal(signal.SIGTERM)


@pytest.mark.slow
def test_a_stop_of_one_process_stops_all_and_the_run_continues_bit_for_bit(small_data, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "run"
    changed = {"accumulate": 1, "iterations": 30, "save_every": 50, "batch_size": 2}
    assert ended(run_command(arguments(small_data, whole, **changed)))[0] == [0, 0]
    processes = run_command(arguments(small_data, out, **changed))
    stop_one(processes, out / "log.csv", 3)
    codes, lines = ended(processes)
    assert codes == [0, 0] and len(lines[0]) == 1 and lines[1] == []
    step = load_newest_run(out)["step"]
    assert 3 <= step < 30, "the second process was asked too late"
    assert lines[0][0].startswith(f"dynamask: SIGTERM at step {step}: the state is saved in {out}")
    codes, lines = ended(run_command(arguments(small_data, out, "--resume", **changed)))
    assert codes == [0, 0] and lines == [[], []]
    assert_equal_runs(out, whole)
    state = load_newest_run(out)
    assert state["parts"] == [2, 1] and state["loader"]["position"] == 60
    draws = [own["cpu"] for own in state["random"]]
    assert len(draws) == 2 and not torch.equal(*draws), "processes draw for themselves"
    with pytest.warns(UserWarning, match="saved with 2 processes and 1 micro-batches and continues with 1 and 1"):
        one = toy_run(tmp_path / "other", batch_size=2)
        one._restore_random(state)


@pytest.mark.slow
def test_an_error_of_one_process_is_reported_once_and_the_state_saved(small_data, tmp_path):
    odd = ended(run_command(arguments(small_data, tmp_path / "odd", batch_size=3)))
    assert odd[0] == [2, 2] and odd[1][1] == [] and len(odd[1][0]) == 1
    assert "a batch of 3 pictures cannot be shared by 2 processes; give a batch size that is a multiple" in odd[1][0][0]
    assert not (tmp_path / "odd").exists()
    unknown = ended(run_command(["train", "--no-such-flag"]))
    assert unknown[0] == [2, 2] and len(unknown[1][0]) == 1 and unknown[1][1] == []
    world = tmp_path / "data"
    shutil.copytree(small_data, world)
    whole = (world / "images" / "4.png").read_bytes()
    damaged = whole[:60] + bytes(len(whole) - 80) + whole[-20:]  # header and end, which are checked before, are whole
    (world / "images" / "4.png").write_bytes(damaged)
    codes, lines = ended(run_command(arguments(world, tmp_path / "run", batch_size=2, save_every=50)))
    assert codes == [2, 2] and sorted(map(len, lines)) == [0, 1]
    step, line = load_newest_run(tmp_path / "run")["step"], (lines[0] + lines[1])[0]
    assert "4.png" in line and f"the state of step {step} is saved" in line
