# %% [markdown]
# # 04 · The switch
#
# **Goal**: understand how a network can learn to make a hard decision: softmax, argmax, Gumbel noise, temperature, the
# straight-through gradient. See a switch collapse, and what cures it.
#
# **You need**: notebook 00; PyTorch's autograd. 01 helps.
#
# **Running time**: about a minute on two CPU cores, most of it for looking at scenes and training six small switches.

# %% [markdown]
# ## The result
#
# Here is a scene of shapes. The switch looked once at each object's 14×14 feature, and its four probabilities came
# out. The largest is the choice. Plump shapes are cheap, spiky ones are not.

# %% tags=["thumbnail"]
import torch
from lessons import fast, gumbel

import dynamask
from dynamask.data.shapes import ShapesDataset

predictor = dynamask.load("shapes")
scene = ShapesDataset(20, 1).scene(10)
prediction = predictor(scene.image, all_sizes=True)
names = [f"#{i + 1} {prediction.class_names[k]}" for i, k in enumerate(prediction.labels.tolist())]
gumbel.probabilities_figure(prediction.switch_probs, names)

# %% [markdown]
# The objects themselves, with the sizes that they got:

# %%
from dynamask.viz import explore

explore(prediction)

# %% [markdown]
# How do you *train* something whose output is "the third one"? The rest of this notebook answers that.
#
# ## An argmax has no gradient
#
# The module ends in four logits. Softmax makes them probabilities, argmax makes them a decision. The decision is an
# index: nothing flows back through it.

# %%
from dynamask.models.masks import policies

logits = prediction.switch_logits.clone().requires_grad_()
choice = policies.learned(logits)
print("probabilities have a gradient:", torch.softmax(logits, dim=1).requires_grad)
print("the decision has one:         ", choice.requires_grad, "| its type:", choice.dtype)

# %% [markdown]
# Two ways out. *Compute everything and average by p*: exact, but then every mask must be computed, and the network
# never meets the hard decisions that it will live with. Or *draw* a decision as often as p says, and find a gradient
# for the draw. The paper does the second.
#
# ## Gumbel noise turns argmax into a dice roll
#
# Add to every log p an independent g = −log(−log u), u uniform in (0, 1). Then
#
# > argmax(log p + g) is distributed **exactly** as p.
#
# Dividing by a temperature τ changes no argmax, so it cannot change the draw. What does it change, then? **Play
# first**: set the noise to 0, then step through the draws; then move τ from one end to the other and watch the middle
# panel alone.

# %%
panel = gumbel.TemperaturePanel()
panel

# %% [markdown]
# Low τ: the soft y is nearly one-hot, whatever the probabilities. High τ: it is nearly uniform. The right panel never
# moves with τ. We can check the claim about the dice with many draws, at two temperatures:

# %%
from dynamask.models.masks.switch import straight_through_gumbel

draws = fast(4_000, 40_000)
four = torch.tensor([0.0, 1.0, 1.6, 0.4])
many = four.expand(draws, 4)
drawn = {f"τ = {t}": straight_through_gumbel(many, t, gumbel.gumbel_noise(draws, 7)).mean(0) for t in (0.1, 5.0)}
print("largest difference from p:", round(float((drawn["τ = 0.1"] - four.softmax(0)).abs().max()), 4))
assert torch.allclose(drawn["τ = 0.1"], drawn["τ = 5.0"], atol=1e-5), "the temperature does not change the draw"
gumbel.frequencies_figure(four.softmax(0), drawn)

# %% [markdown]
# ## Straight through
#
# Forward, y is exactly one-hot: one mask is used, as at test time. Backward, we pretend that it had been the soft y.
# In code it is one line, `hard + (soft - soft.detach())`. The bracket is exactly zero, but it has a gradient.
#
# **Check it yourself.** For a loss L = Σ y·e with an error e per size, the gradient of the soft y by the logits is, by
# hand, s ⊙ (e − Σ s·e) / τ.

# %%
tau, noise = 0.5, gumbel.gumbel_noise(1, 3)
errors = torch.tensor([[0.30, 0.20, 0.15, 0.12]])
leaf = four[None].clone().requires_grad_()
y = straight_through_gumbel(leaf, tau, noise)
(y * errors).sum().backward()
soft = torch.softmax((torch.log_softmax(four[None], dim=1) + noise) / tau, dim=1)
by_hand = soft * (errors - (soft * errors).sum()) / tau
print("forward ", y.detach().tolist())
print("autograd", [f"{g:+.5f}" for g in leaf.grad[0]])
print("by hand ", [f"{g:+.5f}" for g in by_hand[0]])
assert torch.allclose(leaf.grad, by_hand, atol=1e-6) and set(y.flatten().tolist()) == {0.0, 1.0}

# %% [markdown]
# Is this the *right* gradient? No: the true gradient of the expected error Σ p·e is p ⊙ (e − Σ p·e). Averaged over many
# draws, the straight-through gradient misses it by a bias; a single draw misses it by noise as well. **Predict**: which
# of the two does a low temperature make worse?

# %%
temperatures = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
quality = gumbel.gradient_quality(four, errors[0], temperatures, draws=fast(2_000, 20_000))
for t, bias, spread in zip(quality.temperatures, quality.bias, quality.noise):
    print(f"τ = {t:3}: bias {bias:.2f}, noise of one draw {spread:.2f} of the true gradient's length")
gumbel.gradient_figure(quality)

# %% [markdown]
# So the temperature buys: cold is nearly unbiased and very noisy, hot is quiet and wrong. `LossConfig().temperature` is
# the authors' choice in between. (The small presets avoid the trade: they weigh all four errors by p itself. Exact, no
# noise, no τ; it can be afforded because training computes all four masks anyway.)

# %% [markdown]
# ## Real objects for real switches
#
# From here on we train. The detector and the mask branch are frozen, so everything they say of an object is computed
# once: the feature that the switch reads, and how good the mask of each size is.

# %%
cache = gumbel.regions(predictor, scenes=fast(16, 80), seed=41)
print(f"{len(cache)} objects, features {tuple(cache.feature.shape)}, errors {tuple(cache.overlap_error.shape)}")
print("mean 1 − mask IoU by size:", cache.overlap_error.double().mean(0).numpy().round(3).tolist())

# %% [markdown]
# ## Collapse, on purpose
#
# Tell a new switch to draw sizes whose masks are good, and nothing else. For nearly every object the finest mask is the
# best one. **What will it learn?** Then we add the budget loss (Eq. 5: the cost of the draws above its target C_t), and
# then the entropy loss (Eq. 6: all sizes should be in use). Same seed, same objects, same number of steps.

# %%
steps = fast(90, 300)
runs = [gumbel.run_switch(cache, name, steps=steps) for name in gumbel.LOSSES_LEFT_OUT]
for run in runs:
    print(f"{run.name:27} shares {run.shares[-1].round(2).tolist()}, mean cost {run.cost[-1]:.0%} of all at 112×112")
gumbel.runs_figure(runs, target=gumbel.LOSS_CONFIG.budget_target)

# %% [markdown]
# **Quality alone** collapses in a handful of steps: 112 for everybody. And it stays there. Where p of a size is nearly
# 0 it is never drawn, and its gradient is multiplied by p: a dead option cannot come back.

# %%
dead = gumbel.run_switch(cache, "quality alone", steps=20)
print(f"mean p after {dead.steps[-1]} steps:", [f"{p:.1e}" for p in dead.mean_probs[-1]])
assert dead.shares[-1][3] > 0.9

# %% [markdown]
# **The budget** pulls the mean cost (line) towards its target (dotted). But a mean is met as well by one or two sizes
# as by four, so some sizes die anyway. **The entropy** term keeps all four alive; which object gets which is then
# decided by quality. Step through the training:

# %%
player = gumbel.StepPlayer(runs)
player

# %% [markdown]
# The target is not met exactly, and that is no bug: Eq. 5 is a pull, not a wall, and the quality pulls the other way
# with a weight of its own. The budget slider at test time *is* a wall, an exact knapsack.

# %%
config = gumbel.LOSS_CONFIG
print(f"weights: budget and entropy λ2 = {config.switch_weight}, quality {config.boundary_weight}")

# %% [markdown]
# Does the entropy term make everybody's p uniform? No: it looks at the mean of p over the objects. One object may be
# sure of 14 and another of 112. We measure how much p differs between objects:

# %%
for run in runs:
    print(f"{run.name:27} mean p {run.mean_probs[-1].round(2).tolist()}, spread of p over objects {run.spread[-1]:.3f}")

# %% [markdown]
# ## Which signal? The premise of Fig. 5
#
# What should tell the switch that a fine mask is better? The obvious answer is the mask loss of each size. The paper
# takes the loss on *edges* instead, because (its Fig. 5) the mask loss hardly differs between the sizes, while the edge
# loss does. Is it so here? The losses of the frozen model, each on its own grid:

# %%
gumbel.losses_figure(cache)

# %% [markdown]
# Edges do fall from coarse to fine. But careful: what falls is a *mean over the cells of the grid*, and on a fine grid
# fewer cells are edges. A network that knows nothing but that share would also see its edge loss fall. How much of
# such a blind guess's loss does the network save?

# %%
gumbel.baseline_table(cache, scenes=fast(4, 20), seed=41)

# %% [markdown]
# The last line says it: of what there was to know, the finer edges are *not* better known here. And what we want in
# the end is an order among *objects*: who gains most from a fine mask? Rank all objects by each signal's fall from 14
# to 112, and compare with the rank of the true gain in picture pixels (Spearman's ρ, interval over scenes):

# %%
gumbel.rank_table(cache, samples=fast(60, 300))

# %% [markdown]
# In this world, with these small weights, the premise is **not** confirmed: the edge loss ranks objects worse than the
# mask loss does, and both worse than the error of each size's mask *at one common grid* (no wonder: that is nearly the
# quantity itself, and training may look at it). That is why the small presets
# train their switch on the latter (`switch_signal="boundary"`), while the presets with the paper's widths keep the
# paper's edge loss. Nothing here was measured on COCO.
#
# What does the paper's own recipe do here in the same number of steps, with its weights?

# %%
from dynamask.training_config import LossConfig

paper = gumbel.run_switch(cache, "the paper's weights", LossConfig(), steps=steps, without=())
ours = runs[-1]
print(f"λ1 = {LossConfig().edge_weight}, λ2 = {LossConfig().switch_weight}, C_t = {LossConfig().budget_target}")
for run in (paper, ours):
    print(f"{run.name:27} mean p {run.mean_probs[-1].round(2).tolist()}, spread of p over objects {run.spread[-1]:.3f}")
gumbel.runs_figure([paper, ours])

# %% [markdown]
# Its mean p is spread over the sizes, as Eq. 6 demands, but every object gets nearly the *same* p: a third kind of
# collapse, blind to the object, and the one that is easiest to overlook. The mean shares look healthy. Its quality
# term is small beside the other two, and these are few steps: try `LossConfig(edge_weight=2.0)`. Look at the spread
# over objects, not only at the shares.

# %% [markdown]
# ## Exercises
#
# **1.** As τ → 0 the soft y becomes the one-hot y. Show it: for one noise, print the largest difference for τ = 1, 0.1,
# 0.01. Why do we not simply train at τ = 0.01?

# %% tags=["solution"] jupyter={"source_hidden": true}
import torch.nn.functional as F

score = torch.log_softmax(four, dim=0) + gumbel.gumbel_noise(1, 5)[0]
hard = F.one_hot(score.argmax(), 4)
gaps = {t: float((torch.softmax(score / t, dim=0) - hard).abs().max()) for t in (1.0, 0.1, 0.01)}
print(gaps, "the gradient s ⊙ (…) / τ is then either 0 or huge: noise")
assert gaps[1.0] > gaps[0.1] > gaps[0.01] - 1e-9 and gaps[0.01] < 1e-2

# %% [markdown]
# **2.** Where is the minimum of the entropy loss (Eq. 6), and what is its value? Compute it for a uniform p, for a p
# that is sure of one size for everybody, and for four objects that are each sure of another size.

# %% tags=["solution"] jupyter={"source_hidden": true}
import math

from dynamask.models.masks.losses import entropy_loss

uniform, same, each = torch.full((4, 4), 0.25), torch.eye(4)[[2, 2, 2, 2]], torch.eye(4)
values = [float(entropy_loss(p)) for p in (uniform, same, each)]
print([round(v, 4) for v in values], "−log(4)/4 =", round(-math.log(4) / 4, 4))
assert abs(values[0] + math.log(4) / 4) < 1e-4 and abs(values[2] - values[0]) < 1e-4 and abs(values[1]) < 1e-4

# %% [markdown]
# **3.** Train the complete setting with the budget target at 0.2 and at 0.8. Does the mean cost follow? (Use
# `dataclasses.replace(gumbel.LOSS_CONFIG, budget_target=…)`.)

# %% tags=["solution"] jupyter={"source_hidden": true}
from dataclasses import replace

targets = (0.2, 0.8)
pair = [gumbel.run_switch(cache, config=replace(gumbel.LOSS_CONFIG, budget_target=t), steps=steps) for t in targets]
for t, run in zip(targets, pair):
    print(f"target {t:.0%}: mean cost {run.cost[-1]:.0%}, shares {run.shares[-1].round(2).tolist()}")
assert pair[0].cost[-1] < pair[1].cost[-1]

# %% [markdown]
# ## Recap
#
# - Evaluation takes the argmax. Training draws with Gumbel noise: exactly as often as p says, at any temperature.
# - The straight-through gradient is that of the soft y: biased when hot, noisy when cold.
# - Quality alone collapses to the finest size. The budget term makes cost matter, the entropy term keeps every size
#   alive. A healthy mean can still hide a switch that treats all objects alike.
# - The edge loss as a signal is the paper's choice. On this data the error at one common grid ranks objects better.
#
# Next: [05](05_training.ipynb) trains the mask branch and the switch.
