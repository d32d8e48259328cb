"""Training: schedules, optimizers, the loop, bit-exact resuming and weights files."""

import dataclasses
import json
import math

import pytest
import torch
from helpers.runs import LOSSES, SHORT, Rectangles, Toy, log_of, real_run, toy_run
from helpers.small_models import LOSS_NAMES, picture, target, tiny_model
from safetensors.torch import save_file
from torch import nn

from dynamask.data import TrainingLoader
from dynamask.engine.checkpoint import checkpoints, load_newest_run
from dynamask.engine.optimizer import WeightAverage, build_optimizer, lr_factor, parameter_groups
from dynamask.engine.run import Run
from dynamask.engine.step import total_loss, train_step
from dynamask.engine.train import freeze, train
from dynamask.models.detectors.rcnn import LOSSES as DETECTOR_LOSSES
from dynamask.models.weights import load_model, load_weights, read_header, save_model
from dynamask.presets import default_training
from dynamask.structures import DynaMaskError
from dynamask.training_config import LossConfig, TrainConfig

# Schedules and optimizers


def test_warm_up_is_linear_and_the_step_schedule_drops_tenfold():
    config = TrainConfig(iterations=1200, warmup=100, schedule="step")
    assert lr_factor(0, config) == pytest.approx(0.01) and lr_factor(49, config) == pytest.approx(0.5)
    assert lr_factor(99, config) == lr_factor(500, config) == lr_factor(799, config) == 1.0
    assert lr_factor(800, config) == pytest.approx(0.1) and lr_factor(1099, config) == pytest.approx(0.1)
    assert lr_factor(1100, config) == pytest.approx(0.01)


def test_cosine_schedule_ends_at_zero():
    config = TrainConfig(iterations=1000, warmup=0, schedule="cosine")
    factors = [lr_factor(step, config) for step in range(1001)]
    assert factors[0] == 1.0 and factors[500] == pytest.approx(0.5) and factors[1000] == pytest.approx(0.0, abs=1e-12)
    assert factors[250] == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert all(after <= before for before, after in zip(factors, factors[1:]))


def test_the_rate_of_every_group_follows_the_schedule(tmp_path):
    run = real_run(tmp_path, ema_decay=0.0)
    rates = {group["lr"] for group in run.optimizer.param_groups}
    assert rates == {1e-3, 5e-4}
    images, targets = next(run.loader)
    for step in (0, 1, 3):
        run.step = step
        values = train_step(run, images, targets)
        factor = lr_factor(step, run.config)
        found = {round(group["lr"] / factor, 9) for group in run.optimizer.param_groups}
        assert found == {1e-3, 5e-4} and values["lr"] in {group["lr"] for group in run.optimizer.param_groups}


def test_groups_hold_every_trainable_parameter_once():
    model = tiny_model()
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    for optimizer in ("sgd", "adamw"):
        config = TrainConfig(optimizer=optimizer, lr=0.1, backbone_lr_factor=0.5, weight_decay=0.02)
        groups = parameter_groups(model, config)
        members = [id(p) for group in groups for p in group["params"]]
        assert len(members) == len(set(members)) and set(members) == trainable
        body = {id(p) for p in model.backbone.body.parameters()}
        for group in groups:
            assert {id(p) in body for p in group["params"]} == {group["lr"] == 0.05}
            vectors = {p.ndim <= 1 for p in group["params"]}
            if optimizer == "adamw":
                assert vectors == {group["weight_decay"] == 0.0}
            else:
                assert group["weight_decay"] == 0.02
    assert isinstance(build_optimizer(model, TrainConfig()), torch.optim.SGD)
    assert isinstance(build_optimizer(model, SHORT), torch.optim.AdamW)


def test_recipes_are_the_papers_and_a_small_one():
    paper, losses = default_training("dynamask_resnet50_fpn")
    assert (paper.optimizer, paper.lr, paper.batch_size, paper.momentum) == ("sgd", 0.02, 16, 0.9)
    assert (paper.weight_decay, paper.warmup, paper.clip_norm, paper.schedule) == (1e-4, 500, 35.0, "step")
    assert losses.edge_weight == 0.1 and losses.switch_weight in (0.3, 0.4, 0.5)
    small, _ = default_training("dynamask_mobilenetv2_fpn_small")
    assert small.optimizer == "adamw" and small.schedule == "cosine"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"optimizer": "lion"}, "optimizer is 'lion'"),
        ({"schedule": "none"}, "schedule is 'none'"),
        ({"precision": "fp8"}, "precision is 'fp8'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"iterations": 0}, "iterations is 0"),
        ({"accumulate": 0}, "accumulate is 0"),
        ({"keep": 0}, "keep is 0"),
        ({"batch_size": 2**31}, "batch_size is 2147483648; give a number from 1 to 65,536"),
        ({"workers": 10**400}, "workers is too large; give a number from 0 to 1,024"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"val_every": -1}, "val_every is -1"),
        ({"batch_size": 4, "accumulate": 3}, "a batch of 4 pictures cannot be divided into 3 micro-batches"),
    ],
)
def test_impossible_settings_are_refused(wrong, message):
    with pytest.raises(DynaMaskError, match=message):
        dataclasses.replace(SHORT, **wrong)


def test_average_moves_by_hand():
    model = Toy()
    average = WeightAverage(model, decay=0.25)
    expected = model.weight.detach().clone()
    for update in (1, 2, 3):
        with torch.no_grad():
            model.weight += 1.0
        decay = min(0.25, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * model.weight.detach()
        average.update(model)
    torch.testing.assert_close(average.state["weight"], expected)
    assert (1 + 1) / (10 + 1) < 0.25 < (1 + 3) / (10 + 3), "both arms of the minimum were used"
    assert average.state["still"].item() == 7.0


def test_clipping_bounds_the_step(tmp_path):
    run = toy_run(tmp_path, optimizer="sgd", lr=1.0, momentum=0.0, weight_decay=0.0, warmup=0, clip_norm=0.01)
    before = run.model.weight.detach().clone()
    values = train_step(run, *next(run.loader))
    assert values["gradient_norm"] > 1
    assert float((run.model.weight.detach() - before).norm()) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(
    ("part", "prefix"),
    [("detector", "mask_branch."), ("all-but-switch", ("mask_branch.switch.", "mask_branch.quality."))],
)
def test_what_is_frozen_does_not_train(tmp_path, part, prefix):
    model = tiny_model(loss_config=LOSSES)
    freeze(model, part)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {name for name, _ in model.named_parameters() if name.startswith(prefix)}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    run = Run(model, TrainingLoader(Rectangles(), 2), SHORT, tmp_path)
    run.step = 2
    train_step(run, *next(run.loader))
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed and changed <= trainable


# The loop


def test_a_few_steps_reduce_the_loss_and_leave_a_log(tmp_path):
    torch.manual_seed(0)
    run = real_run(tmp_path, iterations=12, lr=3e-3, save_every=100, warm_start=1 / 3)
    saved = []
    train(run, on_save=lambda r: saved.append(r.step), progress=False)
    rows = log_of(run.out)
    assert [row["step"] for row in rows] == list(range(1, 13)) and saved == [12] and run.step == 12
    weights = run.weights
    for row in rows:
        assert row["loss"] == pytest.approx(sum(row[name] * weights[name] for name in LOSS_NAMES), rel=1e-3)
    detector = ("loss_objectness", "loss_classifier", "loss_mask", "loss_edge")
    first, last = (sum(row[name] for row in part for name in detector) for part in (rows[:3], rows[-3:]))
    assert last < 0.9 * first
    assert all(row["loss_budget"] == row["loss_entropy"] == 0 for row in rows[:4]), "phase one has no switch"
    assert all(row["loss_entropy"] < 0 for row in rows[4:]) and any(row["loss_budget"] > 0 for row in rows[4:])
    assert list((tmp_path / "tensorboard").iterdir())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_mask_branch_of_another_kind_trains_without_tally_and_means(tmp_path, accumulate):
    run = toy_run(tmp_path, iterations=2, accumulate=accumulate, log_every=1)
    run.model.mask_branch = nn.Identity()
    assert run.averaging_module is None and train(run)
    assert not any(name.startswith("share_") for name in log_of(run.out)[0])


@pytest.mark.parametrize(("name", "shown"), [("loss_mask", "mask=5"), ("loss_dice", "dice=5"), ("loss_other", "")])
def test_the_bar_shows_the_loss_of_the_masks_under_its_name(tmp_path, capsys, monkeypatch, name, shown):
    run = toy_run(tmp_path, iterations=1, log_every=1, lr=0.0)
    run.weights[name] = 1.0
    monkeypatch.setattr(run.model, "forward", lambda images, targets: {name: (run.model.weight**2).sum()})
    train(run)
    bar = capsys.readouterr().err
    assert "loss=5.000" in bar and shown in bar and "nan" not in bar


@pytest.mark.parametrize("precision", ["fp32", *(pytest.param(p, marks=pytest.mark.slow) for p in ("bf16", "fp16"))])
def test_a_resumed_run_equals_a_straight_one_bit_for_bit(tmp_path, precision):
    def run_to(folder: str, stop: int, seed: int = 0) -> Run:
        run = real_run(tmp_path / folder, seed, precision=precision)
        torch.manual_seed(5)
        if checkpoints(run.out):
            torch.manual_seed(99)
            run.resume()
            assert run.step == 2
        assert train(run, progress=False, should_stop=lambda: run.step == stop) == (stop > 4)
        return run

    straight = run_to("straight", 5)
    run_to("resumed", 2)
    resumed = run_to("resumed", 5, seed=3)
    expected = straight.model.state_dict()
    assert all(value.dtype not in (torch.bfloat16, torch.float16) for value in expected.values())
    assert all(torch.equal(value, expected[key]) for key, value in resumed.model.state_dict().items())
    assert all(torch.equal(resumed.final_state()[key], value) for key, value in straight.final_state().items())
    assert any(not torch.equal(straight.final_state()[key], expected[key]) for key in expected), (
        "the average differs from the last weights"
    )
    theirs, ours = straight.optimizer.state_dict()["state"], resumed.optimizer.state_dict()["state"]
    assert all(torch.equal(ours[i][k], v) for i, state in theirs.items() for k, v in state.items())
    assert (resumed.out / "log.csv").read_text() == (straight.out / "log.csv").read_text()
    scaler = load_newest_run(resumed.out)["scaler"]
    assert scaler == (straight.scaler.state_dict() if precision == "fp16" else None)


@pytest.mark.parametrize("broken", ["loss_mask", "loss_edge"])
def test_a_loss_that_is_not_finite_stops_the_run_and_says_which(tmp_path, broken):
    run = toy_run(tmp_path)
    run.model.broken = broken
    with pytest.raises(DynaMaskError) as caught:
        train(run, progress=False)
    message = str(caught.value)
    assert message.startswith(f"{broken} is not finite at step 0 (pictures 10") and "learning rate" in message
    named = message.split("(pictures ")[1].split(")")[0].split(", ")
    assert len(named) == 2 and {int(name) for name in named} <= {100, 101, 102, 103}
    assert run.model.weight.tolist() == [2.0, -1.0], "no step was taken"
    assert not list(tmp_path.glob("run-*"))


@pytest.mark.parametrize("switch", [True, False])
@pytest.mark.parametrize("options", [{}, {"switch_signal": "boundary"}, {"mask_supervision": "selected"}])
def test_a_batch_without_an_object_gives_every_parameter_of_the_mask_branch_a_zero_gradient(switch, options):
    model = tiny_model(loss_config=LossConfig(**options)).train()
    model.mask_branch.switch_enabled = switch
    full = model([picture()], [target(objects=2)])
    losses = model([picture()], [target(objects=0)])
    branch = {name: loss for name, loss in losses.items() if name not in DETECTOR_LOSSES}
    assert set(losses) == set(full) and len(branch) == (6 if options.get("switch_signal") else 5)
    assert all(loss.requires_grad and float(loss.detach()) == 0 for loss in branch.values())
    total_loss(losses, model.loss_weights).backward()
    for name, parameter in model.mask_branch.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name


def test_pictures_may_be_bytes_or_floats_and_ids_tensors(tmp_path):
    seen = []

    class Watching(Toy):
        def forward(self, images, targets):
            seen.append(images)
            return super().forward(images, targets)

    class Floats(Rectangles):
        def __getitem__(self, index):
            image, found = super().__getitem__(index)
            return image.double() / 255, {**found, "image_id": torch.tensor([index])}

    for dataset in (Rectangles(), Floats()):
        run = Run(Watching(), TrainingLoader(dataset, 4), SHORT, tmp_path)
        train_step(run, *next(run.loader))
    for ours, theirs in zip(*seen, strict=True):
        assert ours.dtype == theirs.dtype == torch.float32 and float(ours.max()) <= 1
        torch.testing.assert_close(ours, theirs)
    run.model.broken = "loss_edge"
    with pytest.raises(DynaMaskError, match=r"pictures [0-3], [0-3], [0-3], [0-3]\)"):
        train_step(run, *next(run.loader))


# Weights files


def test_weights_carry_their_configuration(tmp_path):
    model = tiny_model(category_ids=(5, 6, 9)).eval()
    path = tmp_path / "folder" / "model.safetensors"
    save_model(model, path, training={"seed": 3, "images_seen": 128})
    header = read_header(path)
    assert header["training"] == {"seed": 3, "images_seen": 128}
    assert header["config"]["category_ids"] == [5, 6, 9]
    loaded = load_model(path)
    assert loaded.config == model.config and not loaded.training
    own = model.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in loaded.state_dict().items())
    assert sorted(p.name for p in path.parent.iterdir()) == ["model.safetensors"]
    average = {key: value + 1 if value.is_floating_point() else value for key, value in own.items()}
    save_model(model, path, state=average)
    key = "detector.rpn.head.cls_logits.weight"
    assert torch.equal(load_model(path).state_dict()[key], own[key] + 1)


def test_foreign_truncated_and_missing_weights_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(DynaMaskError, match="do not exist"):
        load_model(path)
    with pytest.raises(DynaMaskError, match="do not exist"):
        load_model(tmp_path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(DynaMaskError, match="were not written by dynamask"):
        load_model(path)
    for content in (b"", b"PK not weights", json.dumps({"format": "dynamask-1"}).encode()):
        path.write_bytes(content)
        with pytest.raises(DynaMaskError, match="cannot be read as safetensors"):
            load_model(path)
    save_model(tiny_model(), path)
    whole = path.read_bytes()
    for length in (len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DynaMaskError, match="cannot be read as safetensors"):
            load_model(path)


def test_weights_of_another_model_name_the_keys_that_differ(tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(tiny_model(num_classes=3), path)
    with pytest.raises(DynaMaskError, match="roi_heads.box_predictor.bbox_pred.bias") as caught:
        load_weights(tiny_model(num_classes=4), path)
    assert "do not fit the model" in str(caught.value)
    model = tiny_model(num_classes=3)
    state = {key: value for key, value in model.state_dict().items() if key != "detector.rpn.head.cls_logits.weight"}
    save_model(model, path, state=state)
    with pytest.raises(DynaMaskError, match="1 tensors differ, first rpn.head.cls_logits.weight"):
        load_model(path)
