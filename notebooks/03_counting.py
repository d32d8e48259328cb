# %% [markdown]
# # 03 · Counting
#
# **Goal**: know what a mask costs, four times over: by hand, by formula, by counter and by clock. See why each size
# costs the same step, and what stopping early saves.
#
# **You need**: notebook 02, pencil and paper.
#
# **Running time**: about a minute on two CPU cores.

# %% [markdown]
# ## Four prices
#
# An instance that stops at 14×14 pays for the base. One that goes on to 28, 56 or 112 pays one more stage each time.
# Here are the prices of the model with the paper's widths, beside the paper's Table 7. The unit is the
# *multiply–accumulate*: 1 MAC = 2 FLOPs. (The paper writes FLOPs and means MACs. You will prove that below.)

# %% tags=["thumbnail"]
from lessons import counting, milliseconds

from dynamask.structures import MASK_SIZES

branch = counting.branch_of_preset("dynamask_resnet50_fpn")
costs = branch.costs
counting.cost_bars("What an instance pays for its mask", counting.price_parts(branch))

# %%
for size, macs, paper in zip(MASK_SIZES, costs.macs_per_instance, counting.PAPER_GMACS):
    print(f"{size:3}×{size:<3} {macs / 1e9:.3f} GMACs, the paper has {paper:.2f} ({macs / 1e9 / paper - 1:+.1%})")

# %% [markdown]
# The paper does not print its layers. Many layouts come near its figures; this one follows its Fig. 3 most closely and
# stays a little below.

# %% [markdown]
# ## By hand
#
# A convolution makes side² outputs in each of its output channels. Each output is a sum over kernel² taps and all
# input channels:
#
# > **MACs = side² · kernel² · inputs · outputs**
#
# A deformable convolution is counted the same. Its bilinear reads cost something, too, but are left out by convention;
# so are interpolation, RoIAlign, biases and activations. The base is two 3×3 convolutions, 256 → 256 channels, at
# 14×14:

# %%
counting.cost_table(counting.base_costs(branch))

# %% [markdown]
# Your turn: the stage to 28×28. Its channels are C = 128, and it has 4 offset groups. All layers but the first have an
# output of 28×28.
#
# | layer | what it does |
# |---|---|
# | reduce | 1×1 at 14×14, 2C → C (upsampling comes after it) |
# | offsets 1 | 3×3 on the concatenation of L and P: 2C → 2 · 9 · groups |
# | deform 1 | 3×3, C → C |
# | offsets 2 | 1×1 on the concatenation: 2C → 2 · 9 · groups |
# | deform 2 | 3×3, C → C |
#
# Put your figures, in **MMACs** (millions), in place of `None` and run the cell. It gives hints.

# %%
answers = {
    "reduce": None,
    "offsets 1": None,
    "deform 1": None,
    "offsets 2": None,
    "deform 2": None,
}
counting.check_answers(answers, counting.stage_costs(branch, 1))

# %% [markdown]
# ## By formula
#
# Every layer of the library counts itself: `stage.macs(size)` asks its convolutions for their shapes, so it cannot
# disagree with the network. (No peeking before you have tried.)

# %%
counting.cost_table(counting.stage_costs(branch, 1))

# %%
by_formula = [stage.macs(size) for stage, size in zip(branch.region_fpn.stages, MASK_SIZES[1:])]
by_rows = [sum(cost.macs for cost in counting.stage_costs(branch, k)) for k in (1, 2, 3)]
print("stages to 28, 56, 112:", by_formula)
assert by_formula == by_rows

# %% [markdown]
# ## By counter
#
# A formula can be right about the layers and wrong about what runs: a stage that is computed and thrown away costs the
# same as one that is used. So we watch. `torch.utils.flop_counter` adds up every operator that is really called. It
# has one blind spot that matters here. What will it say of torchvision's deformable convolution?

# %%
case = counting.deformable_case(branch, size_index=1)
for name, run in counting.three_ways(case).items():
    print(
        f"{name:24} {counting.flops(run, with_formula=False) / 2e6:8.2f} MMACs without a formula,"
        f" {counting.flops(run) / 2e6:8.2f} with it"
    )

# %% [markdown]
# Zero! The counter knows torch's own operators. torchvision's is foreign to it until a formula is registered, and a
# report that forgets this makes deformable networks look cheap. On the CPU this library computes the same sum as
# `grid_sample` and one matrix product, which the counter does see, and finds equal to the formula.
#
# Now the whole branch on one region at each size. The run includes projections and the switch, so we compare all rows.

# %%
import torch

features, rois = counting.random_features(branch), counting.random_rois(1)
for k, size in enumerate(MASK_SIZES):
    choice = torch.tensor([k])
    counted = counting.flops(lambda choice=choice: counting.run_branch(branch, features, rois, choice)) // 2
    claimed = counting.claimed_macs(branch, features, choice)
    print(f"{size:3}×{size:<3} counted {counted:,}  claimed {sum(claimed.values()):,}")
    assert counted == sum(claimed.values())

# %% [markdown]
# Formula and counter agree to the last MAC. And the paper's "FLOPs" are MACs: its 0.23 G is what two 3×3 convolutions
# at 14×14×256 take in multiply–accumulates. In FLOPs it would be twice that.

# %% [markdown]
# ## Why every step costs the same
#
# From stage to stage the side doubles: four times the cells. The channels halve: a convolution's inputs × outputs
# shrink to a quarter. The product stays. What if one did not halve the channels? **Predict** the price of the last
# stage.

# %%
counting.step_bars(
    {
        "channels halve: 128, 64, 32": counting.steps_of((128, 64, 32)),
        "channels stay: 128, 128, 128": counting.steps_of((128, 128, 128), groups=(4, 4, 4)),
        "channels quarter: 128, 32, 8": counting.steps_of((128, 32, 8), groups=(4, 1, 1)),
    }
)

# %%
halve, stay = counting.steps_of((128, 64, 32)), counting.steps_of((128, 128, 128), groups=(4, 4, 4))
print("ratio of neighbouring steps, halving:", [later / earlier for earlier, later in zip(halve, halve[1:])])
print("ratio of neighbouring steps, staying:", [later / earlier for earlier, later in zip(stay, stay[1:])])
assert halve[0] == halve[1] == halve[2] and stay[1] == 4 * stay[0]

# %% [markdown]
# With channels that stay, each step costs four times the last one. Mask R-CNN's head is such a design: in the paper's
# Table 1 it takes 0.2, 0.5, 2.0 and 8.0 G at the four sizes. Equal steps also make a budget easy to think about: the
# mean cost is the base, plus one step for each stage that an instance goes on.
#
# The small presets of this library do not have equal steps. Exercise 1 asks why.

# %% [markdown]
# ## Stopping early
#
# Suppose 100 instances, with the shares of the paper's Table 8 for its cheapest switch: 35 % stop at 14, 34 % at 28,
# 21 % at 56, 10 % at 112. How many regions go through each stage? A stage must run for those who stop there *and* for
# those who go on.

# %%
choice = counting.mixed_choice(100)
macs = torch.tensor(costs.macs_per_instance)[choice]
print("instances that stop at each size:", dict(zip(MASK_SIZES, torch.bincount(choice, minlength=4).tolist())))
mean, full_price = float(macs.double().mean()), costs.macs_per_instance[3]
print(f"mean cost {mean / 1e9:.3f} GMACs; all at 112: {full_price / 1e9:.3f} (the paper: 0.64 and 1.40)")
print(f"that is {mean / full_price:.0%} of the full cost")

# %% [markdown]
# On paper. Is it so in the code? Many "dynamic" networks compute every branch and select afterwards. We hook the base
# and the stages and count the *rows* that pass, in a mixed batch and with every instance at 112.

# %%
from lessons import fast

count = fast(8, 20)
rois, choice = counting.random_rois(count), counting.mixed_choice(count)
with counting.counted_rows(branch) as mixed_rows:
    mixed = counting.run_branch(branch, features, rois, choice)
with counting.counted_rows(branch) as full_rows:
    full = counting.run_branch(branch, features, rois, torch.full((count,), 3))
print("mixed     ", mixed_rows)
print("all at 112", full_rows)
assert [mixed_rows[f"{size}×{size}"] for size in MASK_SIZES] == [int((choice >= k).sum()) for k in range(4)]

# %% [markdown]
# No row too many. The masks that were computed are the same, too: an instance at 112 gets in the mixed batch what it
# gets when everyone is there.

# %%
finest = torch.nonzero(choice == 3)[:, 0].tolist()
difference = max(float((mixed[i] - full[i]).abs().max()) for i in finest)
print(
    "mask sizes in the mixed batch:", sorted({len(mask) for mask in mixed}), " largest difference at 112:", difference
)
assert difference < 1e-4

# %% [markdown]
# ## What stopping early does not save
#
# Two costs do not depend on the choice. The **projections** run on whole maps, once a picture: with two instances they
# weigh a lot, with fifty they vanish. The **switch** runs for every instance, to decide. Here is a picture of 800×1333
# pixels with a few and with many instances.

# %%
map_sizes = [(50, 84), (100, 167), (200, 334)]  # P4, P3, P2 of an 800×1333 picture
parts = counting.picture_parts(costs, map_sizes, counts=(2, 10, 50))
counting.cost_bars("GMACs per instance, with its share of the picture's costs", parts)

# %% [markdown]
# Memory is a third matter. Steps are equal in MACs, but not in bytes: four times the cells with half the channels are
# *twice* the numbers. A region at 112 needs them all at once.

# %%
for row in counting.memory_rows(branch):
    print(
        f"stage to {row['size']:3}: crop of P {row['crop']:5.2f} MB, offsets {row['offsets']:5.2f} MB,",
        f"gathered columns {row['columns']:6.2f} MB a region",
    )

# %% [markdown]
# ## Refining along the outline
#
# Stopping early saves whole stages. A second saving lies inside a stage. Where an object's inside or the background was
# clear at 28, it stays clear at 112, so why compute it again? **Boundary refinement** (this library's, not the paper's)
# gives each stage a *share* of its cells: those where the mask of the size before, upsampled, has its logit nearest to
# zero. The other cells keep the coarser mask. Here are the cells of one object with all cells at 28, 40 % at 56 and
# 20 % at 112. **Predict** first: what remains of the full price?

# %%
import dynamask
from dynamask.data.shapes import make_scene

refine = (1.0, 0.4, 0.2)
predictor = dynamask.load("shapes", refine=refine)
prediction = predictor(make_scene(seed=1001, index=20).image, all_sizes=True)
counting.listed_pictures(prediction, 0, predictor.costs.cells)

# %%
refined = counting.branch_of_preset("dynamask_resnet50_fpn", refine=refine)
for size, macs, dense in zip(MASK_SIZES, refined.costs.macs_per_instance, costs.macs_per_instance):
    print(f"{size:3}×{size:<3} {macs / 1e9:.3f} GMACs instead of {dense / 1e9:.3f} ({macs / dense:.0%})")

# %% [markdown]
# The price of a size stays a constant: the share is fixed, whatever the object looks like, so budgets and policies work
# as before. Only the first layer of a stage, *reduce*, still runs on all cells. Again we let the counter check.

# %%
one_roi = counting.random_rois(1)
for k, size in enumerate(MASK_SIZES):
    stop = torch.tensor([k])
    counted = counting.flops(lambda stop=stop: counting.run_branch(refined, features, one_roi, stop)) // 2
    claimed = counting.claimed_macs(refined, features, stop)
    print(f"{size:3}×{size:<3} counted {counted:,}  claimed {sum(claimed.values()):,}")
    assert counted == sum(claimed.values())

# %% [markdown]
# What it costs in quality depends on the training: `dynamask train --refine 1,0.4,0.2` trains with the same cells, and
# `dynamask report budget-curve` draws quality against MACs for several shares beside the dense sizes.

# %% [markdown]
# ## By clock
#
# MACs are what one can prove. Milliseconds are what one waits for. All three stages have equal MACs; **predict**
# whether they take equal time.

# %%
timed = counting.stage_times(branch, count=fast(2, 8), repeats=fast(1, 3))
counting.time_bars(timed)

# %% [markdown]
# They do not. Two parts have no MACs at all, RoIAlign (*crop*) and upsampling, and still take time. And the deformable
# convolutions take far longer than their MACs suggest, because most of their time goes into gathering: nine bilinear
# reads for each cell and channel, and the channels shrink only half as fast as the cells grow.

# %%
for size in MASK_SIZES[1:]:
    own = {one.part: one for one in timed if one.size == size}
    plain, deform = own["offsets"], own["deform"]
    print(
        f"stage to {size:3}: {plain.macs / plain.milliseconds / 1e6:7.2f} GMACs/s in plain convolutions,"
        f" {deform.macs / deform.milliseconds / 1e6:6.2f} in deformable ones"
    )

# %% [markdown]
# The same layer three ways, one region. These figures belong to this machine in this minute: a busy or a larger one
# gives others. Ratios are what to look at.

# %%
for k, size in ((1, 28), (3, 112)):
    ways = counting.three_ways(counting.deformable_case(branch, k))
    taken = {name: milliseconds(run, repeats=fast(1, 5)) for name, run in ways.items()}
    print(f"at {size}×{size}: " + ", ".join(f"{name} {ms:.1f} ms" for name, ms in taken.items()))

# %% [markdown]
# Does stopping early save time, then? It does, and more than its MACs say: what is skipped is mostly the fine stages,
# whose MACs are the slow ones.

# %%
small = counting.branch_of_preset("dynamask_mobilenetv2_fpn_small")
small_features = counting.random_features(small)
everyone = torch.full((count,), 3)
mixed_ms = milliseconds(lambda: counting.run_branch(small, small_features, rois, choice), repeats=fast(1, 5))
full_ms = milliseconds(lambda: counting.run_branch(small, small_features, rois, everyone), repeats=fast(1, 5))
prices = torch.tensor(small.costs.macs_per_instance).double()
print(f"small preset, {count} regions: {mixed_ms:.0f} ms mixed, {full_ms:.0f} ms all at 112")
print(f"ratio of their times: {full_ms / mixed_ms:.2f}")
print(f"ratio of their MACs: {float(prices[3] / prices[choice].mean()):.2f}")

# %% [markdown]
# Read the paper's Table 6 in this light (frames a second on a TITAN RTX): Mask R-CNN 12.4, DynaMask 8.3, with a switch
# trained for C_t = 0.4 11.2. Fewer MACs give more frames, but not in proportion: much of a frame is spent elsewhere.

# %% [markdown]
# ## A real picture
#
# All this is in every prediction. `macs` is each instance's price, `image_macs` what belongs to the picture.

# %%
predictor = dynamask.load("shapes")
prediction = predictor(make_scene(seed=1001, index=20).image)
finest = predictor.select(prediction, policy="fixed:112")
print("sizes", prediction.mask_size.tolist())
for name, one in (("learned", prediction), ("all at 112", finest)):
    print(f"{name:10} mean {float(one.macs.double().mean()) / 1e9:.4f} GMACs an instance")
print("the picture's own:", {name: f"{value / 1e9:.4f} G" for name, value in prediction.image_macs.items()})

# %% [markdown]
# ## Exercises
#
# **1.** The small presets have 64 channels at 14×14, so their stages have 32, 16 and 8, each with *one* offset group.
# Show that their steps are not equal, and find numbers of groups (they may be fractions, on paper) that would make
# them so. Which layer is to blame?

# %% tags=["solution"] jupyter={"source_hidden": true}
uneven = counting.steps_of((32, 16, 8), groups=(1, 1, 1))
even = counting.steps_of((32, 16, 8), groups=(4, 2, 1))
print("one group each:", uneven, " groups 4, 2, 1:", even)
assert uneven[0] < uneven[1] < uneven[2] and even[0] == even[1] == even[2]
# The offset convolutions have 2C inputs, but always 18 outputs: they halve where the others shrink to a quarter. If the
# groups halve with the channels, their outputs halve, too.

# %% [markdown]
# **2.** The mean budget is 0.8 GMACs. Half of the instances stop at 14. What share of the other half may go to 112, if
# the rest of it stops at 28? Check the mean with `costs.macs_per_instance`.

# %% tags=["solution"] jupyter={"source_hidden": true}
tiny, small_size, _, large = (value / 1e9 for value in costs.macs_per_instance)
share = ((0.8 - 0.5 * tiny) / 0.5 - small_size) / (large - small_size)
mean = 0.5 * tiny + 0.5 * (share * large + (1 - share) * small_size)
print(f"{share:.1%} of the other half")
assert 0 <= share <= 1 and abs(mean - 0.8) < 1e-9

# %% [markdown]
# **3.** The mask predictor is a 1×1 convolution to one logit a class. This library multiplies with the weights of
# *one* class, the predicted one. How many MACs would all 80 classes of COCO take at 112×112, and what share of the
# full branch is that?

# %% tags=["solution"] jupyter={"source_hidden": true}
channels = branch.region_fpn.mask_predictors[3].in_channels
one, eighty = channels * 112 * 112, 80 * channels * 112 * 112
print(f"{one / 1e6:.2f} MMACs for one class, {eighty / 1e6:.1f} for 80: {eighty / full_price:.1%} of the branch")
assert costs.macs_per_instance[3] == sum(by_formula) + sum(cost.macs for cost in counting.base_costs(branch)) + one

# %% [markdown]
# **4.** Go on later: an instance was predicted at 28, and a larger budget sends it to 56. Count with `counting.flops`
# what the second call of `branch.masks` costs, and compare it with the price list.

# %% tags=["solution"] jupyter={"source_hidden": true}
with torch.no_grad():
    state = branch.begin(features, counting.random_rois(1), torch.tensor([1]))
    branch.masks(state, torch.tensor([1]))
later = counting.flops(lambda: branch.masks(state, torch.tensor([2]))) // 2
predictor_28 = branch.region_fpn.mask_predictors[1].in_channels * 28**2  # paid in the first call
print(f"{later:,} MACs: only the missing stage and its predictor")
assert later == costs.macs_per_instance[2] - costs.macs_per_instance[1] + predictor_28

# %% [markdown]
# ## Recap
#
# - MACs = side² · kernel² · inputs · outputs. One MAC is two FLOPs; say which you mean.
# - A formula says what layers cost, a counter what ran. They must agree, and the counter must know every operator.
# - Side doubles, channels halve: equal steps in MACs, doubled memory, and more than equal time.
# - Stages that an instance does not need are really skipped: count the rows.
# - Projections, base and switch are paid in any case.
# - Time is not MACs. Gathering, cropping and interpolating cost time that no MAC count shows.
