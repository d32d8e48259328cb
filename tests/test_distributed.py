"""Several processes and micro-batches: gradients, losses and AP of one process with the joint batch."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import joint_problems
import pytest
import torch
from joint_problems import OPTIONS, REGIONS

from dynamask.engine.distributed import ALONE, Ranks, joined
from dynamask.structures import DynaMaskError

ROOT = Path(__file__).resolve().parent.parent


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun tells a process."""
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return {**os.environ, **{k: str(v) for k, v in told.items()}, "MASTER_ADDR": "127.0.0.1", "PYTHONPATH": paths}


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> list[dict]:
    """What two gloo processes found, by rank."""
    out, port = tmp_path_factory.mktemp("ranks"), free_port()
    command = [sys.executable, str(ROOT / "tests" / "joint_problems.py"), str(out)]
    processes = [subprocess.Popen(command, cwd=ROOT, env=environment(rank, 2, port)) for rank in range(2)]
    try:
        assert [process.wait(timeout=300) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    return [torch.load(out / f"{rank}.pt", weights_only=False) for rank in range(2)]


def assert_same_step(found: tuple[dict, dict], expected: tuple[dict, dict]) -> None:
    """Equal losses and shares, and gradients equal to 1e-5 of the largest."""
    (values, gradients), (wanted, references) = found, expected
    assert list(values) == list(wanted)
    assert values == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    largest = max(float(reference.abs().max()) for reference in references.values())
    for name, reference in references.items():
        torch.testing.assert_close(gradients[name], reference, rtol=1e-5, atol=1e-5 * max(largest, 1e-3), msg=name)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("regions", REGIONS)
@pytest.mark.parametrize("name", OPTIONS)
def test_two_processes_take_the_step_of_one_with_the_joint_batch(told, tmp_path, name, regions, accumulate):
    expected = joint_problems.step(tmp_path, OPTIONS[name], REGIONS[regions])
    for rank in range(2):
        assert_same_step(told[rank]["steps"][name, regions, accumulate], expected)


@pytest.mark.parametrize("regions", REGIONS)
@pytest.mark.parametrize("name", OPTIONS)
def test_micro_batches_take_the_step_of_the_joint_batch(tmp_path, name, regions):
    expected = joint_problems.step(tmp_path, OPTIONS[name], REGIONS[regions])
    for accumulate in (2, 4):
        assert_same_step(joint_problems.step(tmp_path, OPTIONS[name], REGIONS[regions], accumulate=accumulate), expected)


def test_the_problem_tells_joint_means_from_a_mean_of_means(tmp_path):
    """The test above would see it if the parts were normalised by their own counts."""
    counts = REGIONS["uneven"]
    _, whole = joint_problems.step(tmp_path, OPTIONS["paper"], counts)
    images, targets = joint_problems.pictures(counts)
    model = joint_problems.BranchModel(joint_problems.LossConfig(**OPTIONS["paper"]))
    weights = joint_problems.loss_weights(model.mask_branch.loss_config)
    for half in (targets[:2], targets[2:]):
        losses = model(images, half)
        (sum(loss * weights[name] for name, loss in losses.items()) / 2).backward()
    worst = {name: float((p.grad - whole[name]).abs().max()) for name, p in model.named_parameters()}
    assert max(worst.values()) > 1e-2 and worst["mask_branch.switch.fc.2.weight"] > 1e-3


def test_phase_one_is_joint_too(told, tmp_path):
    expected = joint_problems.step(tmp_path, OPTIONS["expected"], REGIONS["uneven"], switch=False)
    assert_same_step(told[0]["steps"]["phase one"], expected)
    found = joint_problems.step(tmp_path, OPTIONS["expected"], REGIONS["uneven"], switch=False, accumulate=2)
    assert_same_step(found, expected)


def test_the_budget_that_holds_jointly_costs_nothing_in_any_part(tmp_path):
    values, _ = joint_problems.step(tmp_path, OPTIONS["slack"], REGIONS["uneven"], accumulate=2)
    assert values["loss_budget"] == 0 and values["mean_macs"] < values["target_macs"]


def test_evaluation_shared_by_two_processes_equals_that_of_one(told):
    expected = joint_problems.evaluation()
    assert expected[0]["segm"]["AP"] > 0.3
    assert told[0]["evaluation"] == told[1]["evaluation"] == expected


def test_what_goes_wrong_in_one_process_is_heard_in_all(told):
    first, second = told[0]["failing"], told[1]["failing"]
    assert first[:2] == ["ToldElsewhere: process 1 refuses", "DynaMaskError: process 0 refuses"]
    assert second[:2] == ["DynaMaskError: process 1 refuses", "ToldElsewhere: process 0 refuses"]
    assert first[2:] == second[2:] == ["True", "False"]
    assert told[0]["sum"] == told[1]["sum"] == [2.0, 1.0]
    assert told[0]["shares"] + told[1]["shares"] == [0, 1, 2, 3, 4]


def test_without_torchrun_a_process_is_alone():
    with joined("cpu", {}) as ranks:
        assert ranks is ALONE and ranks.first and ranks.device("cuda") == "cuda"
        assert ranks.sum(torch.ones(2)).tolist() == [1, 1] and ranks.gather("x") == ["x"]
    with joined("cpu", {"WORLD_SIZE": "1", "RANK": "0"}) as ranks:
        assert ranks is ALONE
    assert Ranks(3, 8, 1).device("cuda") == "cuda:1" and Ranks(3, 8, 1).device("cpu") == "cpu"


@pytest.mark.parametrize(
    ("device", "changed", "message"),
    [
        ("cpu", {"MASTER_ADDR": None, "LOCAL_RANK": None}, "LOCAL_RANK, MASTER_ADDR is not set; start several"),
        ("cuda:1", {}, "is one GPU for 2 processes; give --device cuda"),
        ("cuda", {"LOCAL_RANK": "99"}, "has no GPU"),
    ],
)
def test_an_environment_that_cannot_work_is_one_sentence(device, changed, message):
    told = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1", **changed}
    with pytest.raises(DynaMaskError, match=message), joined(device, {k: v for k, v in told.items() if v is not None}):
        pass
