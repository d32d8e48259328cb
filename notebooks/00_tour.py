# %% [markdown]
# # 00 · Tour
#
# **Goal**: see what DynaMask does to a photograph, spend a budget of your own on it, and ask every instance why it got
# its mask size.
#
# **You need**: to know what instance segmentation is. No GPU, no network: weights and photographs are in the package.
#
# **Running time**: half a minute on two CPU cores.

# %% [markdown]
# ## The result
#
# Mask R-CNN draws every mask on a grid of one size. DynaMask lets every object have its own: 14×14, 28×28, 56×56 or
# 112×112 cells, and computes nothing beyond it. Run the cell, **then pull the slider**. Each object's size is printed
# on it, and its outline tells it, too: dotted is 14, dashed 28, full 56, double 112.

# %% tags=["thumbnail"]
from lessons import photograph

import dynamask
from dynamask.viz import explore

predictor = dynamask.load("things")
prediction = predictor(photograph("000000000790"), all_sizes=True)
widget = explore(prediction)
widget

# %% [markdown]
# What you can do with it:
#
# - **slider**: the highest mean cost of the masks. The sizes on the picture are the best within it by their predicted
#   quality (or by the switch's probabilities, for weights that predict no quality); nothing is trained again.
# - **policy**: how the sizes are chosen: by the switch or the predicted quality, within a budget, one size for all, or
#   by box area (Eq. 8).
# - **select an instance**: click it, choose it in the list, or step through all with the arrow keys. You see the
#   switch's probabilities, the cost of each size, the four masks, and what the policy changed.
#
# Everything that the widget shows can be had in Python. The rest of this notebook does it step by step.

# %%
from lessons import milliseconds, tour

print(f"{len(prediction)} instances, mask sizes {prediction.mask_size.tolist()}")
tour.instances(prediction)

# %% [markdown]
# ## A resolution, up close
#
# Here is the first person at all four sizes. Above, the cells as the network gives them; below, the mask pasted onto
# the photograph. **Predict before you look**: where will 14×14 go wrong, on the trunk or on the fingers?

# %%
person = prediction.labels.tolist().index(prediction.class_names.index("person"))
tour.grids(prediction, person)

# %% [markdown]
# The trunk is right at every size. Thin and jagged parts (fingers, hair, gaps between arm and body) appear only with
# finer cells. So a ball needs few cells and a bicycle many, and that is all the idea there is.
#
# How different are the four masks really? We compare each with the finest one of the same instance. A line that stays
# high belongs to an instance whose fine mask is a waste.

# %%
tour.overlap_figure(prediction)

# %% [markdown]
# ## What it costs
#
# Costs are multiply-accumulates (MACs) of the mask branch for one instance, counted from the layers. The stages beyond
# the chosen size never run. The switch that decides is so cheap that its bar is hard to see.

# %%
macs = predictor.costs.macs_per_instance
print(f"112×112 costs {macs[3] / macs[0]:.1f} times as much as 14×14")
print(f"the switch costs {predictor.costs.switch_macs / macs[3]:.2%} of a 112×112 mask")
tour.costs(predictor)

# %% [markdown]
# So what did the switch save on this photograph? Against one fine mask for everybody:

# %%
spent, fine = float(prediction.macs.double().mean()), float(macs[3])
print(f"mean {spent / 1e9:.4f} GMACs per instance instead of {fine / 1e9:.4f}: {1 - spent / fine:.0%} less")

# %% [markdown]
# ## The budget
#
# A budget is a mean over the instances of a picture, in GMACs. Within it, the sizes with the highest total of predicted
# quality win: a knapsack, solved exactly. `select` does not run the backbone again. With the policy `"learned"` the
# log-probability of the switch takes the place of the quality.

# %%
cheaper = predictor.select(prediction, budget=0.04)
print("the switch's own", prediction.mask_size.tolist(), f"mean {prediction.macs.double().mean() / 1e9:.4f} GMACs")
print("within 0.04     ", cheaper.mask_size.tolist(), f"mean {cheaper.macs.double().mean() / 1e9:.4f} GMACs")
assert cheaper.macs.double().mean() <= 0.04e9

# %% [markdown]
# That is the slider, once. Here it is at every place, by the predicted quality.

# %%
gmacs = tour.budgets(predictor)
tour.sweep_figure(gmacs, tour.sweep(predictor, prediction, gmacs))

# %% [markdown]
# The switch's log-probability is largest at its own choice, so under the policy `"learned"` a larger budget changes
# nothing more: the bands end in the sizes that the switch chose.

# %%
sizes = tour.sweep(predictor, prediction, gmacs, "learned")
tour.sweep_figure(gmacs, sizes)

# %% [markdown]
# Why is the slider quick? Because the picture goes through the backbone once, and a new budget only chooses again:

# %%
whole = milliseconds(lambda: predictor(photograph("000000000790")), repeats=3)
again = milliseconds(lambda: predictor.select(prediction, budget=0.04))
print(f"a whole prediction {whole:.0f} ms, another budget {again:.1f} ms on this machine")

# %% [markdown]
# ## Why this size?
#
# The switch gives every instance four probabilities. By itself it takes the largest. Under a budget, predicted quality
# is given up where a MAC saved costs the least of it.

# %%
sure = prediction.switch_probs.max(dim=1).values
order = sure.argsort().tolist()
print("least decided first:", [f"#{i + 1} ({sure[i]:.0%})" for i in order])
print(
    "given another size within 0.04:", [f"#{i + 1}" for i in order if cheaper.mask_size[i] != prediction.mask_size[i]]
)

# %% [markdown]
# The widget is an object, too: set its budget, pick an instance, read what it says.

# %%
widget.slider.value = 0.04
widget.selected = order[0]
print(widget.mask_size)
widget.explanation

# %% [markdown]
# ## Things without a name
#
# The weights name 80 classes and show what they are sure enough of. At a lower score they show more, right and wrong;
# with this many instances, a budget has something to decide.

# %%
many = predictor(photograph("000000000790"), score=0.3, all_sizes=True)
print(f"{len(many)} instances with a score of at least 0.3, {len(prediction)} with {predictor.default_score}")
crowd = explore(many, budget=0.05)
crowd

# %% [markdown]
# And if the thing that you care about is none of the 80, draw a box around it. These masks do not depend on the class,
# and masks for given boxes need no detection. The model of a space shuttle gets the name of the class that its box
# resembles most; its mask is that of a thing.

# %%
drawn = predictor(photograph("astronaut"), boxes=[[12, 8, 420, 505], [330, 20, 500, 330]], all_sizes=True)
explore(drawn)

# %% [markdown]
# Use a photograph of your own: `predictor("path/to/picture.jpg")` takes a path, a PIL image or an array.

# %% [markdown]
# ## Exercises
#
# Try each before you open the solution below it (click the three dots).
#
# **1.** By how much does the switch's own choice save on *all* photographs of the package, against 28×28 for everybody,
# or does it spend more? Compute the mean MACs of both over all instances found with a score of at least 0.5.

# %% tags=["solution"] jupyter={"source_hidden": true}
from lessons import EXAMPLES

found = [predictor(path, score=0.5) for path in sorted(EXAMPLES.glob("*.jpg"))]
each = [float(value) for one in found for value in one.macs]
mean = sum(each) / len(each)
print(
    f"{len(each)} instances: mean {mean / 1e9:.4f} GMACs, all at 28×28 {macs[1] / 1e9:.4f}: {mean / macs[1] - 1:+.0%}"
)
assert macs[0] <= mean <= macs[3]

# %% [markdown]
# **2.** What is the smallest budget under which *every* instance keeps the size that the switch chose, if the budget
# follows the switch (`"learned"`)? Find it first with `select`, then say why you could have known it without trying.

# %% tags=["solution"] jupyter={"source_hidden": true}
enough = next(g for g, row in zip(gmacs, sizes) if (row == prediction.mask_size.numpy()).all())
known = float(prediction.macs.double().mean()) / 1e9
print(f"first budget of the sweep: {enough:.4f}; mean cost of the switch's own choice: {known:.4f}")
assert gmacs[gmacs >= known - 1e-12][0] == enough
assert (predictor.select(prediction, "learned", known).mask_size == prediction.mask_size).all()

# %% [markdown]
# **3.** For which instance is the fine mask the greatest waste? Rank the instances by the IoU of their 14×14 and
# 112×112 masks. Does the switch know? (Look at its probability for 14 and 28.)

# %% tags=["solution"] jupyter={"source_hidden": true}
kept = tour.overlaps(prediction)[:, 0]
coarse = prediction.switch_probs[:, :2].sum(dim=1)
for i in kept.argsort()[::-1]:
    print(f"#{i + 1}: IoU of 14 with 112 {kept[i]:.3f}, the switch's belief in 14 or 28: {coarse[i]:.0%}")
assert kept.min() >= 0 and kept.max() <= 1

# %% [markdown]
# ## Recap
#
# - Every instance has its own mask size out of 14, 28, 56 and 112; stages beyond it do not run, so it costs less.
# - `predictor(image)` finds and decides, `predictor.select(prediction, budget=…)` decides again in milliseconds.
# - `explore(prediction)` shows it all, with the reason for every instance. Use it in notebooks of your own.
# - A budget is spent on *predicted* quality, or on what the switch prefers. Notebook 06 judges the switch's choices.
#
# Next: [01](01_why_28_hurts.ipynb) shows what a grid of cells can hold of an outline at all.
