# %% [markdown]
# # 05 · Training
#
# **Goal**: watch a mask branch and a switch learn, stop them and let them go on bit for bit, and see what the budget
# target does to the sizes.
#
# **You need**: notebooks 01 to 03, or their recaps: what the four sizes are, what the switch is, what a budget is.
#
# **Running time**: about eight minutes on two cores.

# %% [markdown]
# ## A mask branch learns in minutes
#
# Finding objects takes long to learn. Outlining them does not, once somebody finds them. So we take the bundled
# `shapes` weights, keep their detector, and throw the mask branch away: region pyramid, predictors and switch are
# drawn at random.

# %%
import dataclasses
import tempfile
from functools import partial
from pathlib import Path

from lessons import fast
from lessons.training_runs import fresh_mask_branch

from dynamask.engine.train import freeze
from dynamask.presets import default_training

schedule, loss_config = default_training("dynamask_mobilenetv2_fpn_small")
model = fresh_mask_branch("shapes", loss_config, mask_rois=fast(1, 3))
freeze(model, "detector")
learns = sum(p.numel() for p in model.parameters() if p.requires_grad)
frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
print(f"{learns:,} numbers learn, {frozen:,} stay as they are")

# %% [markdown]
# A run needs four things: a model that returns named losses, a loader of batches, a schedule, and a folder. The
# scenes are made as they are needed, so there are as many as we like.

# %%
from dynamask.data.loaders import TrainingLoader
from dynamask.data.shapes import ShapesDataset
from dynamask.data.transforms import TrainingTransforms
from dynamask.engine.run import Run

folder = tempfile.TemporaryDirectory(prefix="dynamask-05-")
scenes = ShapesDataset(10_000, seed=5001, transforms=TrainingTransforms(photometric=False))
config = dataclasses.replace(
    schedule, batch_size=fast(1, 4), iterations=fast(6, 120), warmup=fast(2, 10), lr=1.5e-3, ema_decay=0.0, jitter=False
)
loader = TrainingLoader(scenes, config.batch_size, config.seed)
run = Run(model, loader, config, Path(folder.name) / "branch")
images, targets = next(TrainingLoader(scenes, config.batch_size, config.seed))
print(tuple(images[0].shape), {key: tuple(targets[0][key].shape) for key in ("boxes", "labels", "masks")})

# %% [markdown]
# Predict before you look: the four sizes learn side by side from the same objects. Which one will be good first?
#
# The run trains in a thread, so the figure is redrawn and the buttons work meanwhile: **Pause** ends the run after the
# current step and saves its state; **Resume** continues it.

# %%
from lessons.live import LivePanel
from lessons.training_runs import BackgroundTraining, iou_by_size

kept_back = ShapesDataset(fast(1, 4), seed=5002)
training = BackgroundTraining(
    run, measure=partial(iou_by_size, model, kept_back, range(len(kept_back))), every=fast(3, 20)
)
branch_losses = ("loss_mask", "loss_edge", "loss_boundary", "loss_budget", "loss_entropy")
panel = LivePanel(training, branch_losses, measured="mean mask IoU of each size, scenes kept back")
panel.start()

# %% [markdown]
# What the buttons do, you can do as well. (A cell that waits keeps the kernel busy, and clicks wait with it. So play
# with the buttons before you run on.) This cell lets the run work for a while, stops it, and shows what is left:

# %%
training.wait(seconds=fast(1.0, 20.0))
training.stop()
training.wait()
print(f"step {run.step} of {config.iterations}; saved: {[p.name for p in run.out.glob('run-*.pt')]}")

# %% [markdown]
# And this one goes on to the end. It is the same run: same optimiser, same place in the data, same random numbers.

# %%
finished = training.start().wait()
print(f"finished: {finished}; {training.seconds / max(run.step, 1):.1f} seconds a step")

# %% tags=["thumbnail"]
panel.figure()

# %% [markdown]
# Three things to see.
#
# - **The kink at a quarter of the run.** Until then the switch is off (phase one, the *warm start*): masks of all
#   sizes learn, and the losses of the switch are zero. Choosing among masks that are all noise would teach it
#   nothing.
# - **The finest size is the last to rise, and ends on top.** Each stage refines what the stage before hands up, so it
#   can only be good after that one is.
# - **The losses of different sizes do not compare.** Each is a mean over its own grid. The IoU on the right does
#   compare.

# %%
from lessons.picture_grids import error_picture, mask_window, picture_grid
from lessons.training_runs import masks_by_size

from dynamask.models.weights import bundled_path, load_model
from dynamask.structures import MASK_SIZES

stages = {
    "before": fresh_mask_branch("shapes", loss_config),
    f"after {run.step} steps": model,
    "bundled": load_model(bundled_path("shapes")),
}
rows = [masks_by_size(one, kept_back, 0, 0) for one in stages.values()]
window = mask_window(rows[0][1])
pictures = [[error_picture(truth, mask)[window] for mask in masks] for _, truth, masks in rows]
titles = [[f"{name}, {size}" for size in MASK_SIZES] for name in stages]
picture_grid(pictures, titles, "Grey: right. Red: missed. Blue: added.", cell=170)

# %% [markdown]
# The box came from the truth here, and the detector was given. What you saw is the branch alone.

# %% [markdown]
# ## Stop and go on, bit for bit
#
# Now the whole model, from random weights, on small scenes. First a run that nobody disturbs:

# %%
from lessons.training_runs import History, small_run

from dynamask.engine.train import train

steps = fast(6, 30)
straight = History()
whole = small_run(Path(folder.name) / "straight", steps)
train(whole, on_step=straight, progress=False)
print(f"{len(straight)} steps, total loss {straight.values['loss'][0]:.3f} → {straight.values['loss'][-1]:.3f}")

# %% [markdown]
# Then the same run again, but stopped half-way. `should_stop` is asked between steps. Everything is thrown away, and
# a new `Run` takes up the state in the folder:

# %%
first, second = History(), History()
out = Path(folder.name) / "stopped"
train(small_run(out, steps), on_step=first, should_stop=lambda: len(first) == steps // 2, progress=False)

again = small_run(out, steps)
again.resume()
print(f"stopped after step {len(first)}; the new run stands at step {again.step}")
train(again, on_step=second, progress=False)
print(f"and ends at step {again.step}")

# %%
import numpy as np

pieces = {name: first.values[name] + second.values[name] for name in straight.values}
different = [name for name in straight.values if not np.array_equal(straight.values[name], pieces[name])]
print(f"{len(straight.values)} values a step, {len(straight)} steps; not equal to the last bit: {different or 'none'}")

# %% [markdown]
# Is that worth the trouble? Many scripts save the weights alone. Here is what happens then: weights of the stopped
# run, but a new optimiser, a new place in the data and new random numbers.

# %%
import torch
from lessons.live import losses_figure

careless, third = small_run(Path(folder.name) / "careless", steps), History()
state = torch.load(out / f"run-{steps // 2:06d}.pt", weights_only=True)
careless.model.load_state_dict(state["model"])
careless.step = steps // 2
train(careless, on_step=third, progress=False)
drawn = losses_figure(straight, ("loss",), "One run, three ways")
drawn.data[0].name = "undisturbed"
looks = (("stopped and resumed", second, "#EA580C", "dot"), ("weights alone", third, "#DB2777", "dash"))
for name, part, colour, dash in looks:
    line = {"color": colour, "dash": dash, "width": 4}
    drawn.add_scatter(x=part.steps, y=part.values["loss"], name=name, mode="lines", line=line)
drawn

# %% [markdown]
# The dotted line lies on the undisturbed one. The dashed one is another run: not wrong, but nobody can tell any more
# whether a change of its losses came from a change of the code.
#
# The state therefore holds more than weights:

# %%
for key, value in state.items():
    small = not isinstance(value, dict) or len(value) < 8
    print(f"{key:<10}", (list(value) if isinstance(value, dict) else value) if small else f"{len(value)} tensors")

# %% [markdown]
# ## What a whole model needs
#
# The undisturbed run learned from nothing, not even an ImageNet backbone. Do its losses fall? Each step sees two
# scenes, so the curves are smoothed with a half-life of five steps:

# %%
detector = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask")
losses_figure(straight, detector, f"{len(straight)} steps of the whole model", half_life=5)

# %% [markdown]
# Losses are not masks, though. The honest question is what it finds:

# %%
from lessons.training_runs import SMALL_SCENES

from dynamask.engine.evaluate import run_evaluation
from dynamask.predict import TwoStagePredictor

small_scenes = ShapesDataset(fast(2, 8), seed=5003, size=SMALL_SCENES)
summary = run_evaluation(TwoStagePredictor(whole.model), small_scenes)
print(f"{summary['detections']} detections, mask AP {summary['segm']['AP']:.3f}")

# %% [markdown]
# That is what minutes buy from scratch. The bundled weights took longer. The manifest says how long and how:

# %%
from lessons.table import MarkdownTable

from dynamask.models.weights import list_bundled

bundled = list_bundled("two-stage")
MarkdownTable(
    ["weights", "images seen", "times what the run above saw", "mask AP, learned sizes", "judged on pictures"],
    [
        [
            name,
            f"{entry['images_seen']:,}",
            f"{entry['images_seen'] / (2 * len(straight)):,.0f}",
            entry["scores"]["learned"]["segm"]["AP"],
            entry["validation_images"],
        ]
        for name, entry in bundled.items()
    ],
)

# %% [markdown]
# The AP are of different data: those of `things` are of photographs, the others of scenes. Do not compare them with
# each other. `things` started from a trained detector, and the images of that training are not counted. The commands
# are part of the manifest, so every one of these runs can be made again:

# %%
print("\n\n".join(bundled["shapes"]["commands"]))

# %% [markdown]
# ## The recipe
#
# The paper's losses are four sums (Eq. 3–6) and one total (Eq. 7). Each has its field in `LossConfig`:
#
# | paper | what it says | field |
# |---|---|---|
# | Eq. 3, L_mask | the masks are right, at all sizes or at the drawn one | `mask_weight`, `mask_supervision` |
# | Eq. 4, L_edge | the edges are right, at the size that the switch drew | `edge_weight`, the λ1 of Eq. 7 |
# | Eq. 5, L_budget | the mean cost stays below C_t | `budget_target`, a share of the full branch's MACs |
# | Eq. 6, L_entropy | no size is forgotten | `entropy_on` |
# | Eq. 7 | L_mask + λ1 L_edge + λ2 (L_budget + L_entropy) | `switch_weight` is λ2 |
# | Eq. 2 | a size is drawn, and gradients still pass | `temperature` is τ; `switch_selection`: drawn, or p itself |
#
# Where the small models do better with something else, their recipe says so (`docs/decisions.md` has the
# measurements):

# %%
paper_schedule, paper_losses = default_training("dynamask_resnet50_fpn")
fields = [f.name for f in dataclasses.fields(paper_losses)]
MarkdownTable(
    ["field of LossConfig", "paper's preset", "small presets"],
    [[name, str(getattr(paper_losses, name)), str(getattr(loss_config, name))] for name in fields],
)

# %% [markdown]
# λ1 and λ2 are factors of the total and are applied nowhere else. So the total of any step can be checked by hand:

# %%
weights = whole.model.loss_weights
by_hand = sum(weights[name] * straight.values[name][-1] for name in straight.values if name in weights)
print(f"by hand {by_hand:.6f}, logged {straight.values['loss'][-1]:.6f}")
MarkdownTable(
    ["loss", "value", "weight", "product"],
    [
        [name, straight.values[name][-1], weights[name], weights[name] * straight.values[name][-1]]
        for name in straight.values
        if name in weights
    ],
)

# %% [markdown]
# The schedules differ, too: the paper divides the learning rate by ten after 8 and 11 of 12 epochs, the small presets
# let it fall along a cosine.

# %%
from lessons.live import schedules_figure

schedules_figure({"paper, 1×": paper_schedule, "small presets": schedule})

# %% [markdown]
# ## Move the budget while the switch learns
#
# If all but the switch is frozen, everything the switch reads can be computed once: the 14×14 feature of every
# object, and how wrong its mask is at every size. Then a step costs milliseconds, and the budget target can be moved
# live.

# %%
from lessons.training_runs import size_shares

from dynamask import load
from dynamask.engine.frozen_features import build_cache
from dynamask.engine.frozen_switch import SCHEDULE, SwitchTraining

predictor = load("shapes")
many, few = fast(8, 40), fast(4, 16)
regions = build_cache(predictor, ShapesDataset(many, seed=5004), range(many), views=0, seed=0, about={})
others = build_cache(predictor, ShapesDataset(few, seed=5005), range(few), views=0, seed=0, about={})
print(f"{len(regions)} regions to learn from, {len(others)} objects kept back; features {tuple(regions.feature.shape)}")

# %% [markdown]
# Predict: with a generous target, which sizes will it give? And when the target is halved, which size will lose its
# objects first? Pull the slider while it learns.

# %%
count = fast(60, 500)
short = dataclasses.replace(SCHEDULE, batch_size=32, iterations=count, warmup=10, ema_decay=0.0, stop_at=count // 2)
learning = SwitchTraining(regions, dataclasses.replace(loss_config, budget_target=0.6), short)
live = BackgroundTraining(learning, measure=partial(size_shares, learning.switch, others), every=10)
names = ("loss_boundary", "loss_budget", "loss_entropy")
watch = LivePanel(live, names, "size shares, objects kept back", stacked=True, switch=learning)
watch.start()

# %% [markdown]
# The run pauses half-way by itself. Now the target is halved:

# %%
live.wait()
watch.slider.value = 0.3
learning.config = dataclasses.replace(learning.config, stop_at=0)
live.start().wait()
watch.figure()

# %% [markdown]
# The budget loss jumps, because the mean cost is suddenly above the target, and pulls the cost down until the two
# sides weigh the same: what a saved MAC is worth (λ2 times) and what it costs in error. It is a hinge, so below the
# target it would be zero and pull no more. The error of the sizes goes up in return. That is the price of a budget,
# and Eq. 7 is the bargain.

# %% [markdown]
# ### One training for each target
#
# The paper trains a model for every C_t. Here are four, each from a new switch:

# %%
from dynamask.engine.frozen_switch import train_switch
from dynamask.viz.charts import size_share_bars

targets = (0.2, 0.35, 0.5, 0.7)
short = dataclasses.replace(SCHEDULE, iterations=fast(30, 300), batch_size=32)
trained = {
    target: train_switch(regions, dataclasses.replace(loss_config, budget_target=target), short) for target in targets
}
by_target = {f"C_t = {target:.0%}": size_shares(switch, others) for target, switch in trained.items()}
size_share_bars(by_target, "Sizes chosen by switches trained for four targets")

# %% [markdown]
# ### Or one training for all
#
# `budget=…` needs no training: it takes the probabilities of one switch, puts a price on every MAC, and gives each
# object the size that is still worth it. Let the switch of the largest target spend what the others spend:

# %%
from lessons.training_runs import chosen_sizes, spent

from dynamask.engine.frozen_switch import predict_logits
from dynamask.evaluation.choices import at
from dynamask.reports.size_choices import at_budget

macs, iou, table = others.macs, others.mask_iou.double().numpy(), []
logits = predict_logits(trained[targets[-1]], others)
for target, switch in trained.items():
    own = chosen_sizes(switch, others)
    priced = at_budget(logits, predictor.costs.macs_per_instance, spent(own, macs) * macs[-1])
    figures = [(f"{spent(choice, macs):.0%}", float(at(iou, choice).mean())) for choice in (own, priced)]
    table.append([f"{target:.0%}", *figures[0], *figures[1]])
MarkdownTable(["C_t", "its own switch spends", "mean mask IoU", "one switch, priced, spends", "mean mask IoU"], table)

# %% [markdown]
# Two remarks. The target limits the mean of p, the *expected* cost, while a size is given by argmax; the two need not
# agree, and the second column shows by how much. And compare the IoU columns only where the spending is the same.
#
# These switches saw few objects and the differences are small. `docs/decisions.md` does it with more scenes, three
# seeds and intervals.

# %% [markdown]
# ## Exercises
#
# **1.** Half of the objects get 14 and half get 112. Compute L_budget (Eq. 5) for C_t = 0.3 by hand, from the model's
# own costs, and check it with `budget_loss`.

# %% tags=["solution"] jupyter={"source_hidden": true}
from dynamask.models.masks.losses import budget_loss

half, fractions = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 1.0]]), predictor.costs.fractions
expected = (fractions[0] + fractions[-1]) / 2
by_hand = max(expected / 0.3 - 1, 0)
assert abs(float(budget_loss(half, torch.tensor(fractions), 0.3)) - by_hand) < 1e-6
assert float(budget_loss(half, torch.tensor(fractions), 0.9)) == 0  # a hinge: below the target it is silent
print(f"E(C) = {expected:.3f}, L_budget = {by_hand:.3f}")

# %% [markdown]
# **2.** What does `resume` do if you quietly change the learning rate? Try it on the stopped run.

# %% tags=["solution"] jupyter={"source_hidden": true}
from dynamask.structures import DynaMaskError

try:
    small_run(out, steps, lr=1e-2).resume()
    message = ""
except DynaMaskError as error:
    message = str(error)
assert "train.lr" in message and "0.01" in message
print(message)

# %% [markdown]
# **3.** Prove that the first run of this notebook left the detector alone: compare its tensors with those of the
# bundled weights, inside the mask branch and outside of it.

# %% tags=["solution"] jupyter={"source_hidden": true}
stored, now = load_model(bundled_path("shapes")).state_dict(), model.state_dict()
moved = {key for key in stored if not torch.equal(stored[key], now[key])}
assert moved and all(key.startswith("mask_branch.") for key in moved)
print(f"{len(moved)} of {len(stored)} tensors differ, all of them in the mask branch")

# %% [markdown]
# **4.** The paper's schedule warms up for 500 steps. Which learning rate has its step 250 (counted from 1), and which
# the last step of all? Compute both, then ask `lr_factor`.

# %% tags=["solution"] jupyter={"source_hidden": true}
from dynamask.engine.optimizer import lr_factor

middle, last = paper_schedule.lr * 250 / 500, paper_schedule.lr * 0.1 * 0.1
assert np.isclose(paper_schedule.lr * lr_factor(249, paper_schedule), middle)
assert np.isclose(paper_schedule.lr * lr_factor(paper_schedule.iterations - 1, paper_schedule), last)
folder.cleanup()
print(middle, last)

# %% [markdown]
# ## Recap
#
# - With a detector given, a mask branch learns in minutes; the coarse sizes are good first.
# - A run is a model, a loader, a schedule and a folder. Its state holds all that the next step
#   depends on, and a resumed run is the same run to the last bit.
# - From nothing, minutes buy falling losses and hardly a mask. The bundled runs are longer, and the manifest says how
#   to make them again.
# - Eq. 3–7 are fields of `LossConfig`. C_t moves the sizes; a price on one switch's probabilities moves them as well,
#   without training.
