"""The device of every command and of ``load``: CUDA, then MPS, then the CPU."""

import pytest
import torch
from helpers.command_line import refusal

from dynamask import cli
from dynamask.engine.distributed import Ranks
from dynamask.ops.devices import best_device, resolve_device
from dynamask.structures import DynaMaskError


@pytest.fixture
def machine(monkeypatch):
    """Pretend that this machine has certain devices."""

    def pretend(cuda: bool, mps: bool) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return pretend


@pytest.mark.parametrize(
    ("cuda", "mps", "best", "with_float64"),
    [(True, True, "cuda", "cuda"), (False, True, "mps", "cpu"), (False, False, "cpu", "cpu")],
)
def test_the_best_device_of_a_machine(machine, cuda, mps, best, with_float64):
    machine(cuda, mps)
    assert (best_device(), best_device(mps=False)) == (best, with_float64)
    several = Ranks(1, 2, 1)  # gloo has no MPS
    assert several.device("auto") == ("cuda:1" if cuda else "cpu") and several.device("cpu") == "cpu"


def test_auto_is_resolved_and_a_named_device_stays(machine):
    machine(False, False)
    assert resolve_device() == resolve_device("auto") == torch.device("cpu")
    machine(True, False)
    assert resolve_device("cpu") == resolve_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("name", ["toaster", "cuda:99", ""])
def test_a_device_that_is_not_there_is_one_sentence(machine, name):
    machine(False, False)
    with pytest.raises(DynaMaskError, match=f"^device '{name}' is not available here; use auto, which is cpu on"):
        resolve_device(name)


@pytest.mark.parametrize(
    "words", ["predict --image x.png --out out", "evaluate --weights x", "report table1 --weights x --out out"]
)
def test_commands_choose_the_device_by_default(words):
    assert cli.build_parser().parse_args(words.split()).device == "auto"


def test_a_training_on_a_missing_device_leaves_nothing_behind(tmp_path, capsys):
    words = "train --model dynamask_mobilenetv2_fpn_small --data shapes:1:4 --device cuda:99 --out"
    assert "device 'cuda:99' is not available here" in refusal(capsys, *words.split(), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
