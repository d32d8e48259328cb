# %% [markdown]
# # 08 · One-stage
#
# **Goal**: find and outline objects without a single box. See what a cell of SOLO learns, why SOLOv2's masks are
# vectors, how SODAR lets neighbouring cells help each other, and measure whether that helps here.
#
# **You need**: notebook 00. 06 helps: it says what an average precision is.
#
# **Running time**: about a minute and a half on two CPU cores.

# %% [markdown]
# ## Every cell draws a mask
#
# DynaMask finds boxes first and outlines what is inside. SOLO has no boxes. It lays a grid over the picture, and
# *every cell* says two things: what is here, and which pixels of the whole picture belong to it. Here are the masks of
# all cells of one level, each at its cell's place (weights `shapes-solov2`). Move the slider: there are five levels.

# %% tags=["thumbnail"]
from lessons import cell_masks, fast

import dynamask
from dynamask.data.shapes import ShapesDataset

solo = dynamask.load("shapes-solov2")
scenes = ShapesDataset(fast(8, 80), seed=1001)
scene = scenes.scene(0)
found = solo(scene.image)
cell_masks.mosaic_figure(found, scene.image)

# %% [markdown]
# Neighbouring cells draw nearly the same mask. All but one of them are thrown away. Keep that in mind: SODAR begins
# there.

# %%
for i in range(len(found)):
    view, name = found.cells.explain(i), found.class_names[int(found.labels[i])]
    print(
        f"#{i + 1} {name}: score {found.scores[i]:.2f}, level {cell_masks.level_name(view.level)},",
        f"cell (row {view.row}, column {view.column}) of {view.grid}×{view.grid}",
    )

# %% [markdown]
# ## Which cell is responsible?
#
# In training somebody must say which cell learns which object. Three rules:
#
# 1. **Level by size.** Every level has a range of √(w·h). The ranges overlap, so most objects are learned on two.
# 2. **Place by centre of mass.** The cell that holds it is responsible. A centre of mass is a point of the *mask*; a
#    box plays no part.
# 3. **A few more.** All cells within a fifth of the object's width and height around the centre learn it too, at most
#    3×3.
#
# Filled cells learn the object of their colour; a cross is a centre of mass.

# %%
names = [f"#{i + 1} {scenes.class_names[k]}" for i, k in enumerate(scene.labels.tolist())]
cell_masks.grid_figure(solo.model, scene, names)

# %% [markdown]
# On a level whose range does not hold it, an object has no cell: there its pixels are background for everybody.
#
# **Predict**: a disc lies inside a ring, both have the same centre and nearly the same size. Two objects in one cell.
# What will be learned?

# %%
import torch

from dynamask.models.solo.targets import assign

config = solo.model.config
pair = {
    "centres": torch.tensor([[176.0, 144.0], [178.0, 145.0]]),
    "boxes": torch.tensor([[116.0, 84.0, 236.0, 204.0], [123.0, 90.0, 233.0, 200.0]]),
    "labels": torch.tensor([4, 1]),
}
owners = assign([pair], (288, 352), config.grids, config.scale_ranges, config.centre_share)
for level, own in enumerate(owners):
    print(f"level {cell_masks.level_name(level)}: cells {own.cell.tolist()}, object {own.instance.tolist()}")
assert 0 not in torch.cat([own.instance for own in owners]), "the first object has no cell at all"

# %% [markdown]
# A cell has room for one object: the later one takes it, and the first is never learned. A finer grid makes that
# rarer, never impossible. How often does it happen in this world?

# %%
lost, total = cell_masks.unlearned(solo.model, ShapesDataset(fast(30, 300), seed=1001))
print(f"{lost} of {total} objects have no cell on any level")

# %% [markdown]
# ## SOLO: one map for every cell
#
# The first SOLO (Wang et al., 2020) makes these maps in the plainest way: a 1×1 convolution with G² outputs, one
# channel a cell. So there are as many whole maps as cells, and all of them are computed. **Predict**, for the paper's
# grids and a picture of 800×1280: how many maps, how many bytes?

# %%
from dynamask.models.solo.inference import find_candidates
from dynamask.presets import model_config

paper = model_config("solo_resnet50_fpn")
maps = cell_masks.dense_maps(paper, 800, 1280)
print("grids", paper.grids, "→", " + ".join(str(row.maps) for row in maps), "=", sum(row.maps for row in maps), "maps")
print(f"{sum(row.megabytes for row in maps):,.0f} MB a picture, for the maps alone")
assert sum(row.maps for row in maps) == sum(grid**2 for grid in paper.grids) == 3872

# %%
cell_masks.memory_figure(paper, [(320, 512), (480, 768), (640, 1024), (800, 1280)])

# %% [markdown]
# Nearly all of it is levels 1 and 2. How many of all these maps does a picture need? For our scene:

# %%
candidates = find_candidates(found.cells.encoded, 0, config.score_threshold)
cells = sum(grid**2 for grid in config.grids)
print(f"{cells} cells, {len(candidates)} with a class score above {config.score_threshold}, {len(found)} instances")

# %% [markdown]
# ## SOLOv2: a mask is a vector
#
# SOLOv2 (Wang et al., 2020) turns it round. A cell does not predict a map; it predicts a *vector*, the kernel of a 1×1
# convolution. One feature, common to all cells of all levels, is convolved with it:
#
# > mask(y, x) = σ( vector · feature(y, x) )
#
# That is the whole decoder. By hand:

# %%
vector, feature = cell_masks.kernel_of(found, 0), cell_masks.feature_of(found)
by_hand = torch.einsum("c,chw->hw", vector, feature)
own = found.cells.explain(0)
print("vector", tuple(vector.shape), "feature", tuple(feature.shape), "→ map", tuple(by_hand.shape))
print("largest difference from the model's mask:", float((by_hand.sigmoid() - own.mask).abs().max()))
assert torch.allclose(by_hand.sigmoid(), own.mask, atol=1e-5)

# %% [markdown]
# Before the σ, everything is **linear in the vector**. Mix the vectors of two objects, and you get the mix of their
# maps. What will the *mask* of a half-and-half vector look like: both objects, one, none?

# %%
cell_masks.mixing_figure(found, scene.image, 0, 1)

# %%
other = cell_masks.kernel_of(found, 1)
mixed_vectors = torch.einsum("c,chw->hw", 0.4 * vector + 0.6 * other, feature)
mixed_maps = 0.4 * by_hand + 0.6 * torch.einsum("c,chw->hw", other, feature)
print(f"mix of vectors against mix of maps: largest difference {float((mixed_vectors - mixed_maps).abs().max()):.1e}")
half = torch.einsum("c,chw->hw", (vector + other) / 2, feature)
sizes = [int((x > 0).sum()) for x in (by_hand, torch.einsum("c,chw->hw", other, feature), half)]
print("pixels inside: #1 alone {}, #2 alone {}, half and half {}".format(*sizes))
assert torch.allclose(mixed_vectors, mixed_maps, atol=1e-3)

# %% [markdown]
# The no of one vector is usually louder than the yes of the other, so half and half is no union.
#
# Linear maps make life easy: whatever one wants to do with maps can be done with vectors, which are much smaller. And
# one decodes only the cells that need it. Here, for this picture:

# %%
from dynamask.models.solo.costs import decoding_macs

one_map = decoding_macs(*feature.shape[-2:], feature.shape[0], None)
print(
    f"one map {one_map / 1e6:.2f} MMACs; all {cells} cells {cells * one_map / 1e9:.2f} GMACs,",
    f"{len(candidates)} candidates {len(candidates) * one_map / 1e9:.3f} GMACs",
)

# %% [markdown]
# ## Too many masks: matrix NMS
#
# Neighbours fire together. The candidates of our scene, best first (the number is class score × mean certainty inside
# the mask):

# %%
case = cell_masks.candidates_of(found, most=12)
cell_masks.candidate_pictures(case, scene.image)

# %% [markdown]
# Usual NMS walks down the list and deletes what overlaps a kept one: a loop. SOLOv2 multiplies scores instead, all at
# once. Candidate j falls with its overlap with every better candidate i of its class, f = exp(−σ·IoU²):
#
# > decay(j) = min over i < j of f(IoU(i, j)) / f(c(i)), where c(i) is the largest overlap of i with any better one
#
# The division is the point: an i that is a duplicate itself should not suppress others. Three masks, by hand:

# %%
import math

from dynamask.models.solo.inference import matrix_nms

ious = torch.tensor([[1.0, 0.8, 0.1], [0.8, 1.0, 0.6], [0.1, 0.6, 1.0]])
scores, labels = torch.tensor([0.9, 0.8, 0.7]), torch.ones(3, dtype=torch.int64)
second = math.exp(-2 * 0.8**2)
third = min(math.exp(-2 * 0.1**2), math.exp(-2 * (0.6**2 - 0.8**2)))
print(f"decay of the second {second:.3f}, of the third {third:.3f}")
print("by hand", [0.9, round(0.8 * second, 4), round(0.7 * third, 4)])
print("library", [round(v, 4) for v in matrix_nms(ious, labels, scores).tolist()])
assert torch.allclose(matrix_nms(ious, labels, scores), scores * torch.tensor([1.0, second, third]), atol=1e-6)

# %% [markdown]
# The second is a duplicate of the first and falls. The third overlaps the second by .6, but the second does not count:
# the third keeps nearly all. **Predict** before you move the slider: what does a larger σ do to masks that overlap a
# little? And which kernel deletes a perfect duplicate altogether?

# %%
cell_masks.suppression_figure(case, config.update_threshold)

# %% [markdown]
# ## SODAR: ask the neighbours
#
# The cells around a detected object have drawn it too, from one step further left, right, up, down. NMS throws that
# away. Averaging the masks hardly helps: the paper tried it first (Table II, at best +0.3 AP). **SODAR** (Wang et al.,
# 2022) lets a small network *combine* them. What a cell draws is then no mask any more but a **representation**:
# nobody supervises it; only the combination must be right.
#
# Here is an object with its cell and the four neighbours (weights `shapes-sodar`, as long trained as those above):

# %%
from lessons import two_models

from dynamask.viz.cells import cell_figure

sodar = dynamask.load("shapes-sodar")
seen = sodar(scene.image)
row, shown = two_models.matched(seen, scene)[0]
view = seen.cells.explain(shown)
cell_figure(scene.image, view)

# %% [markdown]
# What does each know? Red is positive, blue negative, before any σ. **Predict**: will they look like five masks of the
# object?

# %%
cell_masks.representation_pictures(view)

# %% [markdown]
# Nobody has told the network which sign shall mean "inside", nor that other objects shall stay out. The small network
# behind can put both right.
#
# All the representations of a level, at their places. Compare with the very first figure, where each cell was trained
# to draw a mask:

# %%
cell_masks.mosaic_figure(seen, scene.image, soft=False)

# %% [markdown]
# Does the network *use* the neighbours? Put the centre's representation in a neighbour's place and see what the mask
# loses; for the centre, take the mean of its neighbours; for the context, zeros. (As in notebook 02: that tells what
# these weights rely on, not what the design is worth.) Each dot is an object. **Predict** the highest bar.

# %%
from dynamask.evaluation.bootstrap import paired_bootstrap

parts = two_models.neighbour_losses(sodar, [scenes.scene(i) for i in range(fast(4, 30))])
gain = paired_bootstrap(parts[two_models.FOUR])
print(
    f"{len(parts['centre'])} objects; IoU that all four neighbours add to the centre alone: {gain.mean:+.3f}",
    f"(95 % interval over objects {gain.low:+.3f} to {gain.high:+.3f})",
)
print("These weights gain", "by" if gain.sign > 0 else "nothing by", "looking at their neighbours.")
two_models.losses_figure(parts)

# %% [markdown]
# If it is nothing, then whatever SODAR is worth here does not come from the neighbours. The paper shows representations
# that complement each other (Fig. 6), after tens of epochs on 118,000 pictures; these weights saw a few thousand
# scenes. Where five representations are alike, they are as good as one.
#
# ### At the border
#
# A cell at the border has no neighbour outside. Its own representation takes the place: positions are clamped.

# %%
from dynamask.models.solo.aggregation import neighbour_positions

corner = neighbour_positions(torch.tensor([[0.0, 0.0]]), "4", mask_grid=12)[0]
for name, wanted, used in zip(cell_masks.NEIGHBOUR_NAMES, corner.tolist(), corner.clamp(0, 11).tolist()):
    print(f"{name:7} wanted {wanted}, used {used}")

# %% [markdown]
# ### A network of its own for every cell
#
# The five representations and 16 channels of context (all pyramid levels, fused) go through three 3×3 convolutions.
# Their weights are not learned: a convolution **predicts** them for every cell, as one vector θ. How long is θ?

# %%
from dynamask.models.solo.aggregation import split_theta

aggregation, theta = sodar.model.config.aggregation, cell_masks.theta_of(seen, shown)
for i, (weight, bias) in enumerate(split_theta(theta, aggregation.widths, aggregation.kernel), start=1):
    print(f"layer {i}: weights {tuple(weight.shape[1:])} = {weight[0].numel()}, biases {bias[0].numel()}")
by_count = (21 * 4 * 9 + 4) + (4 * 4 * 9 + 4) + (4 * 1 * 9 + 1)
print("θ has", theta.shape[1], "numbers; by hand", by_count)
assert theta.shape[1] == by_count == aggregation.parameters

# %% [markdown]
# Who decides *which* object is drawn: the representations, or θ? Give every object the θ of every other:

# %%
trio = sorted(index for _, index in two_models.matched(seen, scene))[:3]
other_theta, other_maps = cell_masks.swapped_ious(seen, trio)
print(f"IoU with the own mask: another's θ {other_theta:.2f}, another's neighbours {other_maps:.2f}")
cell_masks.swap_figure(seen, scene.image, trio)

# %% [markdown]
# Where the pictures of a row are alike, the representations decide; where those of a column are, θ does. Both would do,
# and training takes what it finds first: another run may divide the work differently.
#
# ### Vectors again
#
# Where neighbours move, SODAR must sample representations also *between* cells, bilinearly. Maps of all cells would
# have to be there for it. But maps are linear in their vectors: sample the vectors, then decode. Both ways, at row 3.3
# and column 4.6:

# %%
from dynamask.models.solo.aggregation import decode, sample_vectors

grid, image = seen.cells.encoded.grids[2], torch.zeros(1, dtype=torch.int64)
between = sample_vectors(grid.vectors, image, torch.tensor([[[3.3, 4.6]]]), "clamp")
from_vectors = decode(between, image, grid.features)[0, 0]
dense = decode(grid.vectors.flatten(2).transpose(1, 2), image, grid.features)[0].unflatten(0, (12, 12))
shares = ((3, 4, 0.7 * 0.4), (3, 5, 0.7 * 0.6), (4, 4, 0.3 * 0.4), (4, 5, 0.3 * 0.6))
from_maps = sum(share * dense[y, x] for y, x, share in shares)
print(
    f"largest difference {float((from_vectors - from_maps).abs().max()):.1e} of values up to",
    f"{float(from_maps.abs().max()):.1f}; held: {between.numel()} numbers, or {dense.numel():,}",
)
assert torch.allclose(from_vectors, from_maps, atol=1e-3)

# %% [markdown]
# ### Neighbours that move
#
# The deformable variant predicts ten more numbers a cell, (Δrow, Δcolumn) for each of the five. With zeros it must be
# the fixed one, and it is:

# %%
cell = seen.cells.cell[shown : shown + 1]
layer, side = sodar.model.aggregation, config.grids[view.level]
fixed = layer.positions(cell, side, side)
assert torch.equal(fixed, layer.positions(cell, side, side, offsets=torch.zeros(1, 10)))
print("(row, column) of the five:", fixed[0].tolist())

# %% [markdown]
# Let us move them ourselves, all by the same length. These weights were trained at a distance of 1; at 0 all five are
# the centre. **Predict**: how far can they go before the mask breaks?

# %%
cell_masks.spread_figure(seen, scene.image, shown, scene.masks[row])

# %% [markdown]
# ### Fewer maps than cells
#
# If representations are shared anyway, there need not be one for every cell. On a mask grid of three quarters of the
# side, cell i lies at i·(G′ − 1)/(G − 1); it takes the representation nearest to that, with its neighbours. Cells that
# share them differ in θ alone. (The paper goes from 40 to 20. Here 20 is the start.)

# %%
from dynamask.models.solo.aggregation import base_positions

coarser = dynamask.load("shapes-sodar-mask")
grids, coarse = coarser.model.config.grids, coarser.model.config.representation_grids
print(f"{sum(g * g for g in grids)} cells share {sum(g * g for g in coarse)} representations")
rows = torch.arange(6) * 20
print("rows 0 … 5 of 20 lie at", base_positions(rows, 20, 15, "between")[:, 0].numpy().round(2))
print("and take the representations", base_positions(rows, 20, 15)[:, 0].int().tolist())
less = coarser(scene.image)
cell_figure(scene.image, less.cells.explain(two_models.matched(less, scene)[0][1]))

# %% [markdown]
# ## Does it help?
#
# The paper says so, on COCO and in AP per cent: SOLOv2-R50 37.7, with SODAR 38.7, and more at high IoU (Table III). One
# caution about that baseline: for R101 it has 38.5, SODAR 39.4, while SOLOv2's authors publish 39.1.
#
# And here? Same data, same number of steps, same seed; scenes that neither has seen. The models are not of equal size,
# though: SODAR has a tower for θ and the context besides.

# %%
from dynamask.models.weights import list_bundled

for name, each in (("shapes-solov2", solo), ("shapes-sodar", sodar)):
    entry, size = list_bundled()[name], sum(p.numel() for p in each.model.parameters())
    parts = f"{entry['images_seen']:,} scenes in {len(entry['commands'])} trainings, the last of seed {entry['seed']}"
    print(f"{name}: {parts}; {size:,} parameters")
titles = ("SOLOv2", "SODAR")
plain, aggregated = (two_models.judged(each, scenes) for each in (solo, sodar))
outcome = two_models.compare(titles, plain, aggregated, samples=fast(100, 1000))
two_models.comparison_figure(outcome)

# %%
from lessons.table import MarkdownTable

MarkdownTable(["", *titles, "difference", "95 % interval over scenes"], outcome.rows())

# %%
for measure in ("AP", "AP50", "AP90", "boundary AP"):
    print(outcome.verdict(measure))

# %% [markdown]
# The interval is over *scenes*: it says what other scenes of this world might show, of these two training runs. It does
# not say what other runs would show: two runs that differ in nothing but the seed differ as well, and one run of each
# is all that we have here. And who looks at seven measures will find one that "proves" something.

# %% [markdown]
# AP mixes *finding* with *outlining*. SODAR is about outlines, so ask about them alone: the boundary IoU of the objects
# that both have found (mask IoU of .5 or more).

# %%
both = two_models.pairs(plain, aggregated, scenes)
edge = two_models.outline_difference(both, scenes.image_ids)
print(
    f"{len(both)} objects; boundary IoU {edge.mean:+.3f} with SODAR, 95 % interval {edge.low:+.3f} to",
    f"{edge.high:+.3f}",
)
told = "better" if edge.sign > 0 else "worse" if edge.sign < 0 else "not to be told apart"
print(f"On these scenes SODAR's outlines are {told}.")

# %% [markdown]
# Where do they differ most? The first steps of the slider are SODAR's best cases, the last ones its worst. Look at
# both.

# %%
two_models.pairs_figure(both, scenes, titles)

# %% [markdown]
# ## Two ways to spend computation
#
# DynaMask gives an instance a finer mask where that pays. SODAR gives every instance its neighbours. What does each
# spend, on the same scene? (All that runs, counted by torch; *discarded* is work for candidates that nobody sees.)

# %%
dynamic = dynamask.load("shapes")
models = {"SOLOv2": solo, "SODAR": sodar, "SODAR, fewer maps": coarser, "DynaMask": dynamic}
spent = {name: two_models.spent(model, scene.image) for name, model in models.items()}
two_models.spent_figure(spent)

# %% [markdown]
# And with the paper's widths? One-stage masks cover the whole picture, so they grow with it. DynaMask's cover a box: a
# 112×112 mask costs the same wherever it is.

# %%
from lessons.counting import branch_of_preset

from dynamask.models.masks.costs import mask_branch_costs

configs = {"SOLOv2": model_config("solov2_resnet50_fpn"), "SODAR": model_config("sodar_v2_resnet50_fpn")}
branch = branch_of_preset("dynamask_resnet50_fpn")
costs = mask_branch_costs(branch.head, branch.switch)
two_models.growth_figure(configs, costs, sides=range(160, 1281, 160))

# %% [markdown]
# The ideas do not exclude each other. One spends on *information* (what do the cells next to me see?), the other on
# *resolution* (how finely is it drawn?), and only the second decides per object how much.

# %% [markdown]
# ## Exercises
#
# **1.** How long is θ with all eight neighbours? And with the context left out? Count, then ask `AggregationConfig`.

# %% tags=["solution"] jupyter={"source_hidden": true}
from dynamask.config import AggregationConfig

eight, alone = AggregationConfig(neighbours="8"), AggregationConfig(context="without")
print("8 neighbours:", eight.parameters, " no context:", alone.parameters)
assert eight.parameters == (25 * 4 * 9 + 4) + (4 * 4 * 9 + 4) + (4 * 9 + 1)
assert alone.parameters == (5 * 4 * 9 + 4) + (4 * 4 * 9 + 4) + (4 * 9 + 1)

# %% [markdown]
# **2.** Three *identical* masks with scores .9, .8, .7. What is left of each with the Gaussian kernel (σ = 2), and what
# with the linear one, f = 1 − IoU? In the linear case the formula divides 0 by 0 for the third: what should come out?

# %% tags=["solution"] jupyter={"source_hidden": true}
same = torch.ones(3, 3)
soft, hard = (matrix_nms(same, labels, scores, kernel) for kernel in ("gaussian", "linear"))
print("gaussian", soft.tolist(), " linear", hard.tolist())
# The third is decayed by the first; the second, a duplicate itself, has no say: exp(−2) for both, or 0 for both.
assert torch.allclose(soft, scores * torch.tensor([1.0, math.exp(-2), math.exp(-2)]))
assert hard.tolist() == [scores[0].item(), 0.0, 0.0]

# %% [markdown]
# **3.** Two concentric objects again, but now the first is twice as large as the second. On which levels does each have
# cells? How much larger must it be for both to be learned *somewhere*?

# %% tags=["solution"] jupyter={"source_hidden": true}
held = {}
for side in range(110, 261, 10):
    large = torch.tensor([176.0 - side / 2, 144.0 - side / 2, 176.0 + side / 2, 144.0 + side / 2])
    target = {**pair, "boxes": torch.stack([large, pair["boxes"][1]])}
    levels = assign([target], (288, 352), config.grids, config.scale_ranges, config.centre_share)
    held[side] = [level + 1 for level, own in enumerate(levels) if 0 in own.instance.tolist()]
print({side: held[side] for side in (110, 190, 200, 220, 260)})
first = min(side for side in held if held[side])
print(f"from {first} pixels on: level 5, whose range begins at {config.scale_ranges[4][0]}, is then its own")
assert not held[110] and 5 in held[220]

# %% [markdown]
# **4.** In SODAR's corner cell (0, 0), how many of the five representations are the same? Check it on the model:
# compare the five vectors that `sample_vectors` returns there.

# %% tags=["solution"] jupyter={"source_hidden": true}
sampled = sample_vectors(grid.vectors, image, corner[None], "clamp")[0]
alike = [name for name, v in zip(cell_masks.NEIGHBOUR_NAMES, sampled) if torch.equal(v, sampled[2])]
print(len(alike), "of five:", ", ".join(alike))
assert alike == ["top", "left", "centre"]

# %% [markdown]
# ## Recap
#
# - SOLO needs no boxes: the cell of an object's centre of mass says its class and draws its mask. A cell holds one
#   object; the level is chosen by size.
# - A map for every cell is what SOLO pays. SOLOv2's masks are vectors times one feature: linear, and decoded only where
#   something was found.
# - Matrix NMS multiplies instead of deleting. Duplicates have no say.
# - SODAR combines the representations of neighbouring cells by a small network whose 945 weights every cell predicts.
# - Whether it helps, and whether by the neighbours, are questions to data. Look at the interval, and remember that one
#   run of each was compared.
#
# What to read next: [02](02_region_fpn.ipynb) for the other way to better outlines, [06](06_judging.ipynb) for how
# such comparisons are made, and `dynamask/models/solo/`, which is short.
