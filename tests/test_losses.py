"""Every loss equals NumPy written from its equation, and reaches the modules it is meant to train."""

import numpy as np
import pytest
import torch
from helpers.small_models import LOSS_NAMES, pyramid, some_rois, tiny_branch, tiny_model

from dynamask.engine.step import total_loss
from dynamask.models.masks import losses
from dynamask.models.masks.losses import scale_gradient
from dynamask.models.masks.switch import sample_gumbel, straight_through_gumbel
from dynamask.ops.masks import mask_edges
from dynamask.ops.means import JointMeans
from dynamask.structures import MASK_SIZES, DynaMaskError
from dynamask.training_config import LossConfig

SIDES = (2, 3, 5, 8)


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(N,) mean over pixels of −(m log m̂ + (1 − m) log(1 − m̂))."""
    predicted = 1 / (1 + np.exp(-logits.astype(np.float64)))
    values = -(targets * np.log(predicted) + (1 - targets) * np.log(1 - predicted))
    return values.reshape(len(values), -1).mean(axis=1)


def equation_3(logits: list, targets: list, y: np.ndarray) -> float:
    """L = Σ_i Σ_k y_i^k BCE(m̂_i^k, m_i), mean over the N RoIs; Eq. 4 is the same on edges."""
    total = 0.0
    for i in range(len(y)):
        for k in range(y.shape[1]):
            total += y[i, k] * cross_entropy(logits[k][i : i + 1], targets[k][i : i + 1])[0]
    return total / len(y)


def problem(count: int = 6, seed: int = 0) -> tuple[list, list, torch.Tensor]:
    """Logits, binary targets at each side, and a one-hot selection."""
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(count, side, side, generator=generator) * 3 for side in SIDES]
    targets = [(torch.rand(count, side, side, generator=generator) > 0.5).float() for side in SIDES]
    drawn = torch.randint(0, 4, (count,), generator=generator)
    return logits, targets, torch.nn.functional.one_hot(drawn, 4).float()


def numpy_of(tensors: list) -> list:
    return [tensor.detach().numpy() for tensor in tensors]


@pytest.mark.parametrize("selected", [True, False])
def test_the_loss_of_selected_sizes_equals_equations_3_and_4(selected):
    logits, targets, y = problem()
    table = losses.resolution_losses(logits, targets)
    assert table.shape == (6, 4)
    weights = y.numpy() if selected else np.full((6, 4), 0.25)
    expected = equation_3(numpy_of(logits), numpy_of(targets), weights)
    assert float(losses.selected_loss(table, y if selected else None)) == pytest.approx(expected, rel=1e-5)


def test_summed_losses_of_selected_sizes_equal_a_hand_calculation():
    table = torch.tensor([[0.5, 0.25, 0.125, 0.0], [1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.5, 8.0]])
    y = torch.eye(4)[[1, 2, 3]]  # selects 0.25, 3 and 8
    assert float(losses.selected_loss(table, y, reduction="sum")) == 11.25
    assert float(losses.selected_loss(table, y)) == 3.75
    halves = [JointMeans(2, lambda count: torch.tensor(3.0)) for _ in range(2)]  # 2 + 1 regions in two parts
    for reduction, expected in (("sum", 11.25), ("mean", 3.75)):
        parts = [
            losses.selected_loss(table[rows], y[rows], means, reduction)
            for means, rows in zip(halves, (slice(0, 2), slice(2, 3)))
        ]
        assert float(sum(parts)) / 2 == pytest.approx(expected), "the parts' gradients are averaged"


@pytest.mark.parametrize("supervision", ["all", "selected"])
@pytest.mark.parametrize("switch_enabled", [True, False])
def test_summed_losses_of_the_branch_are_n_times_the_means_and_the_switch_terms_stay_means(supervision, switch_enabled):
    found = {}
    for reduction in ("mean", "sum"):
        branch, state, targets = branch_and_state(mask_supervision=supervision, loss_reduction=reduction)
        branch.switch_enabled = switch_enabled
        found[reduction] = {k: float(v) for k, v in branch.losses(state, targets, noise_for([0, 3, 1, 2, 1])).items()}
    for name, value in found["sum"].items():
        factor = 5 if name in ("loss_mask", "loss_edge") else 1
        assert value == pytest.approx(factor * found["mean"][name], rel=1e-5), name
    assert found["mean"]["loss_mask"] > 0


@pytest.mark.parametrize("target", [0.1, 0.4, 0.69, 1.0])
def test_budget_loss_equals_equation_5(target):
    _, _, y = problem()
    macs = np.array([0.17, 0.45, 0.72, 1.0])
    expected = max((y.numpy() * macs).sum(axis=1).mean() / target - 1.0, 0.0)
    found = losses.budget_loss(y, torch.tensor(macs, dtype=torch.float32), target)
    assert float(found) == pytest.approx(expected, abs=1e-6)


def test_entropy_loss_equals_equation_6_and_is_least_when_uniform():
    probs = torch.softmax(torch.randn(7, 4, generator=torch.Generator().manual_seed(3)) * 2, dim=1)
    f = probs.numpy().astype(np.float64).mean(axis=0)
    assert float(losses.entropy_loss(probs)) == pytest.approx((f * np.log(f)).sum() / 4, rel=1e-5)
    uniform = losses.entropy_loss(torch.full((3, 4), 0.25))
    assert float(uniform) == pytest.approx(-np.log(4) / 4, rel=1e-6)
    one_each = losses.entropy_loss(torch.eye(4))
    assert float(one_each) == pytest.approx(float(uniform)), "f is the mean over RoIs, not the entropy of each"
    assert float(uniform) < float(losses.entropy_loss(probs)) < float(losses.entropy_loss(torch.eye(4)[:1])) + 1e-6


def test_without_a_region_every_loss_is_a_connected_zero():
    logits = [torch.zeros(0, side, side, requires_grad=True) for side in SIDES]
    y = torch.zeros(0, 4, requires_grad=True)
    table = losses.resolution_losses(logits, [torch.zeros(0, side, side) for side in SIDES])
    found = {
        "mask, all": losses.selected_loss(table, None),
        "mask, selected": losses.selected_loss(table, y),
        "budget": losses.budget_loss(y, torch.ones(4), 0.3),
        "entropy": losses.entropy_loss(y),
    }
    for name, value in found.items():
        assert value.shape == () and float(value.detach()) == 0 and value.requires_grad, name
    sum(found.values()).backward()
    assert float(losses.instance_entropy_loss(torch.zeros(0, 4))) == 0
    assert y.grad.shape == (0, 4) and all(x.grad is not None for x in logits)


def test_straight_through_sample_is_one_hot_forward_and_soft_backward():
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(500, 4, generator=generator) * 2).requires_grad_()
    noise = sample_gumbel(logits, generator)
    cotangent = torch.randn(500, 4, generator=generator)
    y = straight_through_gumbel(logits, 0.5, noise)
    assert ((y == 0) | (y == 1)).all() and (y.sum(1) == 1).all(), "exactly one-hot"
    assert torch.equal(y.argmax(1), (logits.log_softmax(1) + noise).argmax(1))
    (found,) = torch.autograd.grad((y * cotangent).sum(), logits)
    soft = torch.softmax((logits.log_softmax(1) + noise) / 0.5, dim=1)
    (expected,) = torch.autograd.grad((soft * cotangent).sum(), logits)
    torch.testing.assert_close(found, expected)


def test_samples_are_drawn_with_the_switch_probabilities():
    generator = torch.Generator().manual_seed(1)
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).repeat(20000, 1)
    shares = straight_through_gumbel(logits, 0.5, sample_gumbel(logits, generator)).mean(0)
    torch.testing.assert_close(shares, logits[0].softmax(0), atol=0.015, rtol=0)


def test_noise_is_finite_seeded_and_drawn_when_absent():
    like = torch.zeros(100_000)
    noise = sample_gumbel(like, torch.Generator().manual_seed(2))
    assert torch.isfinite(noise).all() and float(noise.mean()) == pytest.approx(0.5772, abs=0.02)
    assert torch.equal(noise, sample_gumbel(like, torch.Generator().manual_seed(2)))
    torch.manual_seed(0)
    first, second = (straight_through_gumbel(torch.zeros(50, 4), 1.0).argmax(1) for _ in range(2))
    assert not torch.equal(first, second)
    extreme = straight_through_gumbel(torch.tensor([[1e4, -1e4, 0.0, 3.0]], requires_grad=True), 0.1)
    assert extreme.tolist() == [[1, 0, 0, 0]]


def test_scaled_gradient_keeps_the_value():
    x = torch.tensor([0.1, 1.0, 3e7], requires_grad=True)
    y = scale_gradient(x, 0.05)
    assert torch.equal(y.detach(), x.detach())
    y.sum().backward()
    assert x.grad.tolist() == pytest.approx([0.05] * 3)


# The losses of the whole branch


def branch_and_state(detach: bool = True, **options):
    """A branch under a target that is exceeded, and its state on five regions; features ask for gradients."""
    config = LossConfig(**{"budget_target": 0.05, "detach_switch": detach, **options})
    branch = tiny_branch(loss_config=config)
    features = {key: value.requires_grad_() for key, value in pyramid().items()}
    state = branch.begin(features, some_rois(5), torch.tensor([1, 2, 3, 1, 2]))
    generator = torch.Generator().manual_seed(4)
    targets = [(torch.rand(5, size, size, generator=generator) > 0.5).float() for size in MASK_SIZES]
    return branch, state, targets


def noise_for(drawn: list[int]) -> torch.Tensor:
    """Gumbel noise so large that these sizes are drawn."""
    return 50.0 * torch.nn.functional.one_hot(torch.tensor(drawn), 4).float()


def reached(loss: torch.Tensor, module: torch.nn.Module) -> bool:
    """Whether the loss sends any gradient into the module's parameters."""
    gradients = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True, allow_unused=True)
    return any(g is not None and bool(g.abs().max() > 0) for g in gradients)


@pytest.mark.parametrize("supervision", ["all", "selected"])
def test_losses_of_the_branch_equal_the_equations(supervision):
    branch, state, targets = branch_and_state(mask_supervision=supervision)
    drawn = [0, 3, 1, 2, 1]
    found = {name: loss.detach() for name, loss in branch.losses(state, targets, noise_for(drawn)).items()}
    every = torch.arange(5)
    masks = numpy_of([branch.region_fpn.mask_logits(state, k, every) for k in range(4)])
    edges = numpy_of([branch.region_fpn.edge_logits(state, k, every) for k in range(4)])
    y = np.eye(4)[drawn]
    weights = np.full((5, 4), 0.25) if supervision == "all" else y
    assert float(found["loss_mask"]) == pytest.approx(equation_3(masks, numpy_of(targets), weights), rel=1e-4)
    edge_targets = numpy_of([mask_edges(t) for t in targets])
    assert float(found["loss_edge"]) == pytest.approx(equation_3(edges, edge_targets, y), rel=1e-4)
    macs = np.array(branch.costs.macs_per_instance)
    budget = macs[drawn].mean() / (0.05 * macs[-1]) - 1
    assert float(found["loss_budget"]) == pytest.approx(budget, rel=1e-4)
    f = state.switch_logits.softmax(1).detach().numpy().mean(axis=0)
    assert float(found["loss_entropy"]) == pytest.approx((f * np.log(f)).sum() / 4, rel=1e-4)


def test_each_loss_reaches_what_it_trains_and_nothing_else():
    branch, state, targets = branch_and_state()
    found = branch.losses(state, targets, noise_for([0, 3, 1, 2, 3]))
    fpn = branch.region_fpn
    table = {
        "mask_predictors": fpn.mask_predictors,
        "edge_predictors": fpn.edge_predictors,
        "stages": fpn.stages,
        "base": fpn.base,
        "projections": fpn.projections,
        "switch": branch.switch,
    }
    trains = {name: {key for key, module in table.items() if reached(loss, module)} for name, loss in found.items()}
    pyramid_parts = {"stages", "base", "projections"}
    assert trains["loss_mask"] == {"mask_predictors", *pyramid_parts}
    assert trains["loss_edge"] == {"edge_predictors", "switch", *pyramid_parts}
    assert trains["loss_budget"] == {"switch"}
    assert trains["loss_entropy"] == {"switch"}
    for k in range(4):
        assert reached(found["loss_mask"], fpn.mask_predictors[k]), "every size learns from every region"


def test_selected_supervision_trains_the_drawn_sizes_alone_and_the_switch():
    branch, state, targets = branch_and_state(mask_supervision="selected")
    found = branch.losses(state, targets, noise_for([1, 1, 3, 1, 3]))
    predictors = branch.region_fpn.mask_predictors
    assert [reached(found["loss_mask"], predictor) for predictor in predictors] == [False, True, False, True]
    # without noise that drowns them, the other sizes' losses reach the switch through y
    soft = branch.losses(state, targets, torch.zeros(5, 4))
    assert reached(soft["loss_mask"], branch.switch)


def test_switch_reads_the_region_without_gradients_unless_asked():
    for detach in (True, False):
        branch, state, targets = branch_and_state(detach=detach)
        found = branch.losses(state, targets, torch.zeros(5, 4))
        assert reached(found["loss_budget"], branch.switch)
        assert reached(found["loss_budget"], branch.region_fpn.base) is not detach


def test_switch_gradient_scales_the_quality_term_and_not_the_budget():
    def gradients(factor: float) -> dict[str, torch.Tensor]:
        branch, state, targets = branch_and_state(switch_gradient=factor)
        found = branch.losses(state, targets, torch.zeros(5, 4))
        weight = branch.switch.fc[2].weight
        return {
            name: torch.autograd.grad(found[name], weight, retain_graph=True)[0]
            for name in ("loss_edge", "loss_budget")
        }

    whole, scaled = gradients(1.0), gradients(0.05)
    torch.testing.assert_close(scaled["loss_edge"], 0.05 * whole["loss_edge"], rtol=1e-3, atol=1e-9)
    torch.testing.assert_close(scaled["loss_budget"], whole["loss_budget"])
    assert whole["loss_edge"].abs().max() > 0


def size_error(branch, state, logits, truth, width) -> torch.Tensor:
    """(N, K) error that the signal "boundary" weighs."""
    errors = losses.size_errors([x.detach() for x in logits], truth, state.rois[:, 1:], width)
    return torch.lerp(*errors, branch.loss_config.overlap_share)


def test_boundary_error_trains_the_switch_alone_and_equals_the_drawn_errors():
    branch, state, targets = branch_and_state(switch_signal="boundary")
    width, drawn = torch.full((5,), 3.0), [0, 3, 1, 2, 1]
    found = branch.losses(state, targets, noise_for(drawn), boundary_width=width)
    assert set(found) == {"loss_mask", "loss_edge", "loss_boundary", "loss_budget", "loss_entropy"}
    logits = [branch.region_fpn.mask_logits(state, k, torch.arange(5)) for k in range(4)]
    error = size_error(branch, state, logits, targets[-1], width)
    assert error.shape == (5, 4) and not error.requires_grad and 0 <= float(error.min()) < float(error.max()) <= 1
    expected = error.numpy()[np.arange(5), drawn].mean()
    assert float(found["loss_boundary"].detach()) == pytest.approx(expected, rel=1e-5)
    soft = branch.losses(state, targets, torch.zeros(5, 4), boundary_width=width)
    assert reached(soft["loss_boundary"], branch.switch) and not reached(soft["loss_boundary"], branch.region_fpn)
    assert not reached(soft["loss_edge"], branch.switch), "one signal at a time"
    assert reached(soft["loss_edge"], branch.region_fpn.edge_predictors)


def test_boundary_error_is_zero_for_a_mask_that_is_right():
    branch, state, _ = branch_and_state(switch_signal="boundary")
    truth = torch.zeros(5, 112, 112)
    truth[:, 32:80, 24:96] = 1  # on the grid of every size
    coarse = [torch.nn.functional.max_pool2d(truth, 112 // size) * 40 - 20 for size in MASK_SIZES]
    error = size_error(branch, state, coarse, truth, torch.full((5,), 6.0))
    assert (error[:, 3] == 0).all() and (error < 0.35).all()
    assert (size_error(branch, state, [-x for x in coarse], truth, torch.full((5,), 6.0)) > 0.5).all()


# What weighs the sizes, and whose entropy


def choice_problem(**options):
    """Logits, costs, errors of every size, and the losses of the switch under a configuration."""
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(6, 4, generator=generator).requires_grad_()
    masks, edges, error = (torch.rand(6, 4, generator=generator) for _ in range(3))
    fractions = torch.tensor([0.12, 0.31, 0.58, 1.0])
    noise = noise_for([0, 3, 1, 2, 1, 3])
    config = LossConfig(budget_target=0.3, **options)
    return logits, error, fractions, losses.switch_losses(logits, fractions, masks, edges, error, config, noise)


def test_expected_selection_is_the_mean_over_every_draw():
    logits, error, fractions, found = choice_problem(switch_signal="boundary", switch_selection="expected")
    p = logits.detach().softmax(1)
    assert float(found["loss_boundary"].detach()) == pytest.approx(float((p * error).sum(1).mean()))
    expected = float((p @ fractions).mean()) / 0.3 - 1
    assert float(found["loss_budget"].detach()) == pytest.approx(expected, rel=1e-5)
    generator = torch.Generator().manual_seed(6)
    draws = [straight_through_gumbel(logits.detach(), 1.0, sample_gumbel(logits, generator)) for _ in range(4000)]
    drawn = torch.stack([losses.selected_loss(error, y) for y in draws]).mean()
    assert float(found["loss_boundary"].detach()) == pytest.approx(float(drawn), abs=5e-3)


@pytest.mark.parametrize("entropy_on", ["probs", "selection", "instances"])
def test_entropy_of_the_mean_of_the_draws_and_of_each_instance(entropy_on):
    logits, _, _, found = choice_problem(entropy_on=entropy_on)
    p, y = logits.detach().softmax(1).numpy(), np.eye(4)[[0, 3, 1, 2, 1, 3]]
    value = {
        "probs": (p.mean(0) * np.log(p.mean(0))).sum() / 4,
        "selection": (y.mean(0) * np.log(y.mean(0))).sum() / 4,
        "instances": (p * np.log(p)).sum(1).mean() / 4,
    }[entropy_on]
    assert float(found["loss_entropy"].detach()) == pytest.approx(value, rel=1e-5)
    assert torch.autograd.grad(found["loss_entropy"], logits)[0].abs().max() > 0
    never = torch.tensor([[300.0, 0.0, -300.0, 1.0]]).repeat(5, 1).requires_grad_()  # p of a size is exactly 0
    found = losses.switch_losses(
        never, torch.ones(4), *(torch.zeros(5, 4),) * 2, None, LossConfig(entropy_on=entropy_on)
    )
    gradient = torch.autograd.grad(found["loss_entropy"], never)[0]
    assert torch.isfinite(gradient).all() and torch.isfinite(found["loss_entropy"])


def test_expected_error_and_entropy_of_instances_make_log_p_the_expected_quality():
    _, error, _, _ = choice_problem()
    weight, balance = 2.0, 0.4
    best = (-error * weight * 4 / balance).requires_grad_()
    options = {"switch_signal": "boundary", "switch_selection": "expected", "entropy_on": "instances"}
    config = LossConfig(budget_target=1.0, **options)
    zeros = torch.zeros(6, 4)
    found = losses.switch_losses(best, torch.tensor([0.12, 0.31, 0.58, 1.0]), zeros, zeros, error, config)
    total = weight * found["loss_boundary"] + balance * (found["loss_budget"] + found["loss_entropy"])
    assert torch.autograd.grad(total, best)[0].abs().max() < 1e-7


def test_the_boundary_signal_needs_its_error():
    logits = torch.zeros(2, 4)
    with pytest.raises(ValueError, match="boundary"):
        losses.switch_losses(logits, torch.ones(4), logits, logits, None, LossConfig(switch_signal="boundary"))


def test_the_error_mixes_boundary_and_overlap():
    branch, state, _ = branch_and_state(switch_signal="boundary")
    truth = torch.zeros(5, 112, 112)
    truth[:, 30:83, 24:95] = 1
    width = torch.full((5,), 6.0)
    generator = torch.Generator().manual_seed(7)
    logits = [torch.randn(5, size, size, generator=generator) + 0.5 for size in MASK_SIZES]

    def error(**options):
        branch.loss_config = LossConfig(switch_signal="boundary", **options)
        return size_error(branch, state, logits, truth, width)

    masks = (logits[-1].sigmoid() >= 0.5).numpy()
    overlap = [1 - (m & (t > 0)).sum() / (m | (t > 0)).sum() for m, t in zip(masks, truth.numpy())]
    np.testing.assert_allclose(error(overlap_share=1.0)[:, -1], overlap, rtol=1e-5)
    torch.testing.assert_close(error(overlap_share=0.25), 0.75 * error() + 0.25 * error(overlap_share=1.0))
    none = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    assert float(losses.overlap_error(none, torch.zeros(1, 8, 8))) == 0
    assert float(losses.overlap_error(none, torch.ones(1, 8, 8))) == 1


def test_first_phase_leaves_the_switch_alone_and_trains_every_edge_predictor():
    branch, state, targets = branch_and_state()
    branch.switch_enabled = False
    found = branch.losses(state, targets)
    assert float(found["loss_budget"].detach()) == float(found["loss_entropy"].detach()) == 0
    assert not any(reached(loss, branch.switch) for loss in found.values())
    assert all(reached(found["loss_edge"], predictor) for predictor in branch.region_fpn.edge_predictors)


# Weights


def test_weights_are_those_of_equation_7_and_cover_every_loss():
    weights = tiny_model(loss_config=LossConfig(mask_weight=2.0, edge_weight=0.1, switch_weight=0.4)).loss_weights
    assert set(weights) == LOSS_NAMES | {"loss_boundary"}
    assert weights["loss_mask"] == 2.0 and weights["loss_edge"] == 0.1
    assert weights["loss_budget"] == weights["loss_entropy"] == 0.4
    named = {name: torch.tensor(float(i + 1)) for i, name in enumerate(sorted(LOSS_NAMES))}
    expected = sum(float(named[name]) * weights[name] for name in named)
    assert float(total_loss(named, weights)) == pytest.approx(expected)
    assert LossConfig().weights["loss_mask"] == 1.0 and LossConfig().weights["loss_edge"] == 0.1


def test_a_loss_without_a_weight_is_an_error():
    with pytest.raises(KeyError, match="loss_surprise"):
        total_loss({"loss_mask": torch.tensor(1.0), "loss_surprise": torch.tensor(1.0)}, LossConfig().weights)


def test_loss_settings_out_of_range_are_refused():
    choices = dict.fromkeys(
        ("mask_supervision", "loss_reduction", "switch_signal", "switch_selection", "entropy_on"), ("x",)
    )
    ranges = {"budget_target": (0.0, 1.1), "temperature": (0.0,), "overlap_share": (1.5, -0.1)}
    for name, values in {**choices, **ranges}.items():
        for value in values:
            with pytest.raises(DynaMaskError, match=f"{name} is {value!r}; (choose|give)"):
                LossConfig(**{name: value})


def test_the_dice_loss_is_zero_for_the_truth_and_one_for_its_opposite():
    truth = torch.zeros(2, 8, 8)
    truth[0, :4] = 1
    right = torch.where(truth > 0, 50.0, -50.0)
    assert torch.allclose(losses.dice_losses([right], [truth]), torch.zeros(2, 1), atol=1e-6)
    half = losses.dice_losses([torch.zeros(2, 8, 8)], [truth])
    assert torch.allclose(half[:, 0], torch.tensor([1 - 33 / 65, 1 - 1 / 33]))
    assert losses.dice_losses([-right], [truth])[0, 0] > 0.95
