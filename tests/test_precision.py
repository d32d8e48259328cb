"""Half precision, checkpointed stages, micro-batches and a compiled backbone."""

import dataclasses

import pytest
import torch
from helpers.runs import LOSSES, SHORT, Rectangles, real_run, toy_run
from helpers.small_models import picture, pyramid, some_rois, target, tiny_branch, tiny_model
from torch.nn import functional as F

from dynamask.data import TrainingLoader
from dynamask.engine import compiling
from dynamask.engine.compiling import compile_body
from dynamask.engine.run import Run
from dynamask.engine.step import train_step
from dynamask.engine.train import train
from dynamask.models.masks import region_fpn
from dynamask.ops.deform import deform_conv2d
from dynamask.structures import MASK_SIZES, DynaMaskError

BF16 = {"device_type": "cpu", "dtype": torch.bfloat16}


def test_positions_of_a_deformable_convolution_stay_exact_in_bfloat16():
    """The feature is a ramp over 112 columns: its samples are their own positions, and bfloat16 has 8 bits."""
    ramp = torch.arange(112.0).expand(1, 1, 5, 112) / 128
    offset = torch.zeros(1, 18, 5, 112)
    offset[:, 9] = 0.5  # the middle tap, half a pixel to the right
    weight = torch.zeros(1, 1, 3, 3)
    weight[..., 1, 1] = 1
    exact = deform_conv2d(ramp, offset, weight)
    torch.testing.assert_close(exact[..., :-1], ramp[..., :-1] + 0.5 / 128)
    with torch.autocast(**BF16):
        half = deform_conv2d(ramp.bfloat16(), offset.bfloat16(), weight)
    assert half.dtype == torch.bfloat16
    step = 2.0**-8  # of bfloat16 below 1
    assert float((half.float() - exact)[..., :-1].abs().max()) <= 1.5 * step
    stored = deform_conv2d(ramp.bfloat16(), offset.bfloat16(), weight.bfloat16(), torch.zeros(1).bfloat16())
    assert stored.dtype == torch.bfloat16 and torch.equal(stored, half)


def test_boxes_and_losses_are_float32_under_autocast():
    model, seen = tiny_model(loss_config=LOSSES).train(), {}
    usual = model.detector.rpn.forward

    def rpn(images, features, targets=None):
        proposals, losses = usual(images, features, targets)
        seen["proposals"], seen["maps"] = proposals, features
        return proposals, losses

    model.detector.rpn.forward = rpn
    half = []
    model.backbone.fpn.layer_blocks[0].register_forward_hook(lambda *call: half.append(call[2].dtype))
    torch.manual_seed(1)
    exact = model([picture()], [target()])
    torch.manual_seed(1)
    with torch.autocast(**BF16):
        losses = model([picture()], [target()])
    assert half == [torch.float32, torch.bfloat16], "the convolutions did run in half precision"
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    assert all(p.dtype == torch.float32 for p in seen["proposals"])
    assert all(map_.dtype == torch.float32 for map_ in seen["maps"].values())
    anchors = model.detector.rpn.anchor_generator.cell_anchors
    assert all(a.dtype == torch.float32 for a in anchors)
    for name in ("loss_objectness", "loss_mask", "loss_edge", "loss_classifier"):
        # The RoIs that the classifier is trained on are drawn among proposals that differ in the last bits.
        rel = 0.2 if name == "loss_classifier" else 0.05
        assert float(losses[name].detach()) == pytest.approx(float(exact[name].detach()), rel=rel), name


def test_a_run_in_bf16_ends_near_that_in_fp32(tmp_path):
    states = []
    for precision in ("fp32", "bf16"):
        run = real_run(tmp_path / precision, precision=precision, iterations=2)
        torch.manual_seed(5)
        train(run, progress=False)
        states.append(run.model.state_dict())
    assert 0 < max(float((states[1][key] - value).abs().max()) for key, value in states[0].items()) < 0.02


def test_a_gradient_that_overflows_in_fp16_leaves_the_step_out_and_halves_the_scale(tmp_path):
    run = toy_run(tmp_path, precision="fp16", clip_norm=0.0)
    before, scale = run.model.weight.detach().clone(), run.scaler.get_scale()
    handle = run.model.weight.register_hook(lambda gradient: gradient * float("inf"))
    values = train_step(run, *next(run.loader))
    assert values["loss_scale"] == scale / 2 and torch.equal(run.model.weight, before)
    while run.scaler.get_scale() > 2.0**-10:
        train_step(run, *next(run.loader))
    with pytest.raises(DynaMaskError, match="the gradient is not finite"):
        train_step(run, *next(run.loader))
    handle.remove()


@pytest.mark.parametrize("count", [0, 5])
def test_checkpointed_stages_have_equal_gradients(monkeypatch, count):
    monkeypatch.setattr(region_fpn, "CHECKPOINTED_ROIS", 2)
    branch = tiny_branch(loss_config=LOSSES)
    draws = torch.Generator().manual_seed(4)
    targets = [(torch.rand(count, size, size, generator=draws) > 0.5).float() for size in MASK_SIZES]
    found, kept = [], []
    for checkpointed in (False, True):
        branch.region_fpn.checkpoint_stages = checkpointed
        branch.zero_grad()
        features = {key: value.requires_grad_() for key, value in pyramid().items()}
        saved: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t.numel()) or t, lambda t: t):
            state = branch.begin(features, some_rois(5)[:count], torch.tensor([1, 2, 3, 1, 2])[:count])
            losses = branch.losses(state, targets, torch.zeros(count, 4))
        kept.append(sum(saved))
        sum(losses.values()).backward()
        gradients = [p.grad.clone() for p in branch.parameters()]
        found.append(([float(v.detach()) for v in losses.values()], gradients, [f.grad for f in features.values()]))
    (values, gradients, maps), (again, regained, map_gradients) = found
    assert values == again
    for ours, theirs in zip(regained, gradients):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(map_gradients, maps):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert not count or kept[1] < 0.4 * kept[0]


def test_a_run_turns_checkpointing_on_and_refuses_it_without_stages(tmp_path):
    run = real_run(tmp_path, checkpoint_stages=True, iterations=1, warm_start=0.0)
    assert run.branch.region_fpn.checkpoint_stages and train(run, progress=False)
    with pytest.raises(DynaMaskError, match="--checkpoint-stages is for a mask branch"):
        toy_run(tmp_path / "toy", checkpoint_stages=True)


def test_without_a_compiler_the_run_goes_on_and_says_so(tmp_path, monkeypatch):
    def missing(*_, **__):
        raise RuntimeError("no C++\ncompiler")

    monkeypatch.setattr(compiling.torch, "compile", missing)
    with pytest.warns(UserWarning, match=r"the backbone is not compiled, no compiler works here \(no C\+\+ compiler\)"):
        run = real_run(tmp_path, compile=True)
    assert train(run, progress=False)
    with pytest.raises(DynaMaskError, match="--compile is for a model with a backbone"):
        compile_body(toy_run(tmp_path / "toy").model, torch.device("cpu"))


def test_the_body_alone_is_compiled_for_every_size_and_keeps_its_names(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(compiling.torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **options: asked.append((module, options)))
    model = tiny_model()
    names = list(model.state_dict())
    assert compile_body(model, torch.device("cpu"))
    assert asked == [(model.backbone.body, {"dynamic": True})] and list(model.state_dict()) == names


def test_micro_batches_train_a_whole_model_and_draw_what_the_first_pass_drew(tmp_path):
    config = dataclasses.replace(SHORT, batch_size=4, accumulate=2, warm_start=0.0)
    model = tiny_model(loss_config=dataclasses.replace(LOSSES, entropy_on="selection"))
    run = Run(model, TrainingLoader(Rectangles(), 4), config, tmp_path)
    seen = []
    usual = model.mask_branch.losses

    def losses(state, *given, **named):
        seen.append((model.mask_branch.means.counting, state.rois.clone(), state.switch_logits.detach().clone()))
        return usual(state, *given, **named)

    model.mask_branch.losses = losses
    values = train_step(run, *next(run.loader))
    assert [recording for recording, *_ in seen] == [True, True, False, False]
    for (_, rois, logits), (_, again, relogits) in zip(seen[:2], seen[2:]):
        assert torch.equal(rois, again) and torch.equal(logits, relogits)
    assert not torch.equal(seen[0][1], seen[1][1])
    shares = [values[f"share_{size}"] for size in MASK_SIZES]
    logits = torch.cat([logits for *_, logits in seen[2:]])
    expected = F.one_hot(logits.argmax(1), 4).float().mean(0)
    assert shares == pytest.approx(expected.tolist())
    macs = torch.tensor(model.mask_branch.costs.macs_per_instance, dtype=torch.float64)
    assert values["mean_macs"] == pytest.approx(float(expected.double() @ macs))
    assert values["expected_macs"] == pytest.approx(float((logits.softmax(1).double() @ macs).mean()), rel=1e-5)
    assert values["target_macs"] == pytest.approx(LOSSES.budget_target * float(macs[-1]))
