# %% [markdown]
# # 01 · Why 28×28 hurts
#
# **Goal**: see what a mask of M×M cells can hold of an outline at all, before any network predicts it, and why one
# size for every object is a bad deal.
#
# **You need**: notebook 00, and an idea of RoIAlign. No photographs, no weights, no GPU.
#
# **Running time**: under a minute on two CPU cores.

# %% [markdown]
# ## A giraffe and a book
#
# Mask R-CNN predicts every mask on a grid of 28×28 cells and stretches it over the object's box. Below are two real
# outlines from COCO. No network takes part: the *true* mask is squeezed into M×M cells, pasted back, and cut at one
# half. This is what a network would reach that fills every cell perfectly. Before you look: which of the two will lose
# more?

# %% tags=["thumbnail"]
from lessons import ceiling

outlines = ceiling.read_instances()
pair = [ceiling.largest(outlines, "giraffe", rank=2), ceiling.largest(outlines, "book")]
ceiling.ceiling_pictures(pair)

# %% [markdown]
# At 14×14 the giraffe's legs grow together and lose their feet, while the book has lost little but its corners. At
# 28×28 the giraffe is recognisable, yet its legs are still wrong. At 112×112 you must search for wrong pixels.
#
# Here are the numbers. *Boundary IoU* is explained below; for now, it is an IoU that looks at the rim alone.

# %%
quality = ceiling.measure(pair)
for name, mask_iou, boundary_iou in zip(quality.class_names, quality.mask_iou, quality.boundary_iou):
    print(f"{name:8} mask IoU", mask_iou.round(3), " boundary IoU", boundary_iou.round(3))
assert (quality.boundary_iou[0, :2] < quality.boundary_iou[1, :2]).all(), "at 14 and 28 the giraffe loses more"

# %% [markdown]
# Those scores are a **ceiling**. A network with a 28×28 output has nowhere to put more detail, however good it is.
# (Cells tuned for the paste could do a little better than cells filled with the truth; a real network does worse.)

# %% [markdown]
# ## Squeeze and stretch, step by step
#
# 1. **Crop**. Each cell holds the share of its area that the mask covers: a number in 0–1, not a bit.
# 2. **Paste**. A cell's value belongs to the cell's centre. Between centres we interpolate bilinearly at the pixels'
#    centres.
# 3. **Cut**. A pixel belongs to the mask if its value is at least 0.5.
#
# The shares matter: a cell that is 30 % full moves the outline by a fraction of a cell. That is why a coarse mask of a
# smooth shape looks better than its staircase of cells would suggest.

# %%
ceiling.round_trip_pictures(pair[0], 14)

# %% [markdown]
# The crop is one call, an area-sampled RoIAlign with M×M outputs. Its mean is the share of the box that the object
# covers.

# %%
import torch

from dynamask.ops.masks import crop_masks

giraffe = pair[0]
grid = crop_masks(torch.from_numpy(giraffe.mask)[None], torch.tensor([giraffe.box]), 28)
x0, y0, x1, y1 = giraffe.box
print("grid", tuple(grid.shape), "mean of the cells", round(float(grid.mean()), 4))
print("share of the box that the mask covers", round(giraffe.mask.sum() / ((x1 - x0) * (y1 - y0)), 4))

# %% [markdown]
# ## How much detail fits into M cells?
#
# A comb makes the question exact. Teeth and gaps are equally wide, so n teeth are 2n − 1 stripes across the box. A
# grid must give every stripe at least about one cell, or neighbouring stripes share a cell and average to grey:
#
# > **stripes ≤ M**
#
# The same bound is known as the sampling theorem. **Predict**: from which M on do the 12 teeth come apart? Then move
# the slider.

# %%
ceiling.comb_slider(teeth=12, cells=(7, 14, 20, 23, 28, 40, 56, 112))

# %% [markdown]
# Below the bound, more cells buy *nothing*. Once the stripes fit, the loss collapses. An outline with fine parts
# therefore asks for a certain size, and half of it is as bad as a quarter. A smooth outline behaves differently. It
# cuts about c·M cells, c depending on its length, and every cell is 1/M² of the box. If a fixed part of each cut cell
# is wrong, the loss is proportional to c·M / M² = c / M: **twice the cells, half the loss**. On logarithmic axes that
# is a line of slope −1.

# %%
cells = (7, 10, 14, 20, 28, 40, 56, 80, 112)
ceiling.loss_curves([ceiling.disc(), ceiling.comb(4), ceiling.comb(12), ceiling.comb(24)], cells)

# %%
print(f"slope of the disc: {ceiling.slope(cells, ceiling.losses_by_cells(ceiling.disc(), cells)):.2f}")
for teeth in (4, 12, 24):
    lost = ceiling.losses_by_cells(ceiling.comb(teeth), cells)
    fits = next(size for size, loss in zip(cells, lost) if loss < 0.2)
    print(f"{teeth:2} teeth, {2 * teeth - 1:2} stripes: the loss falls below 0.2 at {fits:3} cells")

# %% [markdown]
# The comb of 4 wobbles: where its stripes happen to line up with the cells, it loses less than its neighbours. The
# four sizes 14, 28, 56, 112 are a sensible menu: each doubles what the last could resolve. Note what does *not* enter
# the argument: the size of the object in pixels. A comb of 12 teeth needs its cells whether it fills the picture or a
# corner of it, as long as its teeth are wider than a pixel.

# %% [markdown]
# ## Which ruler? Mask IoU and boundary IoU
#
# Mask IoU divides by the area. The area of a large object is mostly interior, and the interior is easy. Let us peel
# off one pixel all around a disc. For a disc of radius r, mask IoU is (r − 1)² / r²: it goes to 1 for large discs,
# whatever the rim looks like. **Boundary IoU** compares only the rims: the pixels within d of the outline, d being 2 %
# of the picture's diagonal. What will its curve look like?

# %%
radii = (6, 10, 16, 24, 40, 64, 100, 160, 240, 310)
mask_scores, boundary_scores = ceiling.shrunk_disc_scores(radii)
ceiling.metric_curves(
    radii,
    {"mask IoU": mask_scores, "boundary IoU": boundary_scores},
    "A disc that lost one pixel all around, in a picture of 640×640",
    "radius in pixels",
)

# %% [markdown]
# The two agree while the rim *is* the whole object: a disc hardly wider than its rim has no interior. After that mask
# IoU forgives, and boundary IoU does not. Keep this in mind for small objects: their boundary IoU says nothing new.

# %%
from dynamask.evaluation.mask_quality import boundary_width

width = boundary_width((640, 640))
print(f"the rim is {width} pixels wide")
for radius, a, b in zip(radii, mask_scores, boundary_scores):
    print(f"radius {radius:3}: mask IoU {a:.3f}  boundary IoU {b:.3f}{'  the same' if a == b else ''}")
assert all(a == b for radius, a, b in zip(radii, mask_scores, boundary_scores) if radius <= width)

# %% [markdown]
# ## The ceiling of five COCO classes
#
# `outlines` holds a small selection of COCO's annotations (`data/README.md` says which). They are polygons that people
# clicked, so they are smoother than the objects: an annotated book has a handful of corners. The ceiling of the
# *annotation* is what scores are made of, though. `measure` repeats the squeeze for all of them, `dynamask analyze`
# for a whole data set.

# %%
from dynamask.evaluation.ideal_masks import summarise

quality = ceiling.measure(outlines)
summary = summarise(quality)
for name, entry in summary["classes"].items():
    print(
        f"{name:8} {entry['instances']:3} instances, boundary IoU",
        {size: round(value, 3) for size, value in entry["boundary_iou"].items()},
    )

# %%
import numpy as np

names = np.array(quality.class_names)
classes = {name: names == name for name in ("tv", "book", "person", "bicycle", "giraffe")}
ceiling.ceiling_curves(classes, quality, "Ceiling by class")

# %% [markdown]
# The order is what you would guess: straight things at the top, things with legs at the bottom. But careful. The
# giraffes of the file are large and most books are small. Maybe we only see object size? COCO calls objects below 32²
# pixels small, from 96² on large.

# %%
areas = quality.areas
sizes = {"small": areas < 32**2, "medium": (areas >= 32**2) & (areas < 96**2), "large": areas >= 96**2}
ceiling.ceiling_curves(sizes, quality, "Ceiling by object size")

# %% [markdown]
# Size does matter, in a direction that may surprise you: *small* objects need *small* masks. A book of 20 pixels has
# 20 pixels across, and 28 cells hold every one of them. Hardly anything is gained beyond. Large objects have detail to
# lose.
#
# To separate the two causes, compare classes among large objects only.

# %%
large = {name: chosen & sizes["large"] for name, chosen in classes.items()}
ceiling.ceiling_curves(large, quality, "Ceiling by class, large objects only")

# %%
for name in ("giraffe", "tv"):
    print(f"{name:8} large only, boundary IoU {quality.boundary_iou[large[name]].mean(axis=0).round(3)}")
gap = quality.boundary_iou[large["tv"]].mean(axis=0) - quality.boundary_iou[large["giraffe"]].mean(axis=0)
print("the gap among large objects:", gap.round(3))
assert (gap[:2] > 0).all()

# %% [markdown]
# Shape and size both count. A rule on the size of the box (the paper's Eq. 8, `policy="size"`) sees only one of them.
# That is the room a *learned* switch has. Here is the need of each class as `dynamask analyze` draws it; the large dot
# is the smallest size that keeps 95 %.

# %%
from dynamask.viz.required_size import required_size_by_class

required_size_by_class(summary)

# %% [markdown]
# ## A world where the difficulty is known
#
# Photographs do not tell how intricate an outline is. The *shapes world* does: its scenes are drawn by a program, and
# every object carries its complexity, a number in 0–1 that depends on the outline and not on size or place. It is the
# length of the outline against its area, on a logarithmic scale: a square and a disc have 0.

# %%
from lessons import fast

objects = ceiling.scene_instances(seed=1001, count=fast(20, 120))
objects.sort(key=lambda instance: instance.complexity)
easy, hard = objects[len(objects) // 20], objects[-len(objects) // 20]
print(f"{len(objects)} objects; complexity {easy.complexity:.2f} and {hard.complexity:.2f}")
ceiling.ceiling_pictures([easy, hard], cell=190)

# %%
world = ceiling.measure(objects)
complexity = [instance.complexity for instance in objects]
ceiling.spread_by_size(world, complexity, "complexity of the outline", "Ceiling against complexity, one dot an object")

# %% [markdown]
# Read it from left to right: the coarser the mask, the steeper its fall. Read it from top to bottom: what a finer mask
# *gains* is little on the left and a lot on the right. That gain is what a switch must predict. Rank correlation says
# which of the two properties predicts the loss at 14×14.

# %%
from dynamask.evaluation.choices import spearman

lost = 1 - world.boundary_iou[:, 0]
print(f"Spearman of the loss at 14 with complexity  {spearman(lost, np.array(complexity)):+.2f}")
print(f"Spearman of the loss at 14 with object area {spearman(lost, world.areas):+.2f}")

# %% [markdown]
# ## A trap: half a pixel
#
# An ideal mask assumes that crop and paste agree on where a pixel lies. torchvision's own pair does not: its crop
# (`project_masks_on_boxes`) is not aligned, which shifts it by half a pixel, and its paste (`paste_masks_in_image`)
# rounds the box to whole pixels. For 28×28 masks of large objects nobody notices. **Predict** what happens to the gain
# of finer masks on objects of 48 pixels.

# %%
small = ceiling.scene_instances(seed=1001, count=fast(10, 60), size=(320, 320), sides=(0.15, 0.15))
ours, stock = ceiling.measure(small), ceiling.measure(small, ceiling.stock_masks)
print(f"{len(small)} objects of about 48 pixels, mean mask IoU at 14, 28, 56, 112")
print("aligned crop, sampled paste:", ours.mask_iou.mean(axis=0).round(3))
print("torchvision's crop and paste:", stock.mask_iou.mean(axis=0).round(3))

# %%
ceiling.ceiling_pictures([small[0]], "torchvision's crop and paste", round_trip=ceiling.stock_masks)

# %% [markdown]
# A finer mask does not shrink this error, so it hides exactly what finer masks gain. With this pair you would conclude
# that 112×112 is not worth having, and you would have measured your own rounding. It is a line of defence in every
# codebase: *one* convention, in one file (`dynamask/ops/masks.py`), with a test of the round trip.

# %%
gain_ours, gain_stock = (q.mask_iou[:, 3].mean() - q.mask_iou[:, 1].mean() for q in (ours, stock))
print(f"gain of 112 over 28: {gain_ours:+.3f} with ours, {gain_stock:+.3f} with torchvision's")
assert gain_ours > gain_stock

# %% [markdown]
# ## So why not 112×112 for everything?
#
# Two reasons. First, cost: in the paper's Table 1, Mask R-CNN's head takes 0.5 G multiply–accumulates an instance at
# 28×28 and 8.0 G at 112×112. Second, it does not even help. The same table gives its mask AP on COCO for outputs of
# 14, 28, 56 and 112: 32.9, 34.7, 33.8, 32.5. The ceiling rises and the score *falls*, because the head still reads one
# 14×14 crop of the features: it has the cells, but not the information to fill them. Notebook 02 shows where DynaMask
# gets that information, notebook 03 what it costs.

# %% [markdown]
# ## Exercises
#
# **1.** A square object of s×s pixels loses one pixel on each side. Its mask IoU is (1 − 2/s)². From which s on is
# that at least 0.95? Check with `dynamask.evaluation.mask_quality.mask_iou` on real arrays.

# %% tags=["solution"] jupyter={"source_hidden": true}
from dynamask.evaluation.mask_quality import mask_iou

side = next(s for s in range(3, 500) if (1 - 2 / s) ** 2 >= 0.95)
square, peeled = np.zeros((2, side + 10, side + 10), dtype=bool)
square[5 : 5 + side, 5 : 5 + side] = True
peeled[6 : 4 + side, 6 : 4 + side] = True
print(f"from {side} pixels on")
assert abs(mask_iou(square, peeled) - (1 - 2 / side) ** 2) < 1e-12
assert mask_iou(square, peeled) >= 0.95 > (1 - 2 / (side - 1)) ** 2

# %% [markdown]
# **2.** `needed_size(means, kept)` in `dynamask.evaluation.ideal_masks` gives the smallest size whose mean reaches
# `kept`. Which classes change their need when you ask for 0.9 of the boundary instead of 0.95? Why is it never a larger
# size?

# %% tags=["solution"] jupyter={"source_hidden": true}
from dynamask.evaluation.ideal_masks import needed_size

strict = {name: needed_size(entry["boundary_iou"], 0.95) for name, entry in summary["classes"].items()}
loose = {name: needed_size(entry["boundary_iou"], 0.90) for name, entry in summary["classes"].items()}
print({name: (strict[name], loose[name]) for name in strict if strict[name] != loose[name]})
# The means do not depend on `kept`, so whatever reaches 0.95 reaches 0.90 as well.
assert all((loose[name] or 999) <= (strict[name] or 999) for name in strict)

# %% [markdown]
# **3.** What do the *shares* buy? Round the 28×28 grid of the giraffe to 0 and 1 before it is pasted (`paste_mask`),
# and compare the boundary IoU.

# %% tags=["solution"] jupyter={"source_hidden": true}
from dynamask.evaluation.mask_quality import boundary_iou
from dynamask.ops.masks import paste_mask

image_size = giraffe.mask.shape
with_shares = paste_mask(grid[0], giraffe.box, image_size).numpy()
with_bits = paste_mask((grid[0] >= 0.5).float(), giraffe.box, image_size).numpy()
shares, bits = boundary_iou(giraffe.mask, with_shares), boundary_iou(giraffe.mask, with_bits)
print(f"boundary IoU with shares {shares:.3f}, with bits {bits:.3f}")
assert shares > bits

# %% [markdown]
# **4.** A mean of ceilings is also a budget. Suppose you may give 112×112 to a tenth of the objects of the shapes
# world and 14×14 to the rest. Compare the mean boundary IoU of three choices: random objects, the largest, the most
# complex.

# %% tags=["solution"] jupyter={"source_hidden": true}
count = len(objects) // 10
gain = world.boundary_iou[:, 3] - world.boundary_iou[:, 0]
base = world.boundary_iou[:, 0].mean()
random = base + gain.mean() * count / len(objects)
by_area, by_complexity, best = (
    base + gain[np.argsort(-np.asarray(key))[:count]].sum() / len(objects) for key in (world.areas, complexity, gain)
)
print(f"random {random:.3f}, largest {by_area:.3f}, most complex {by_complexity:.3f}, best possible {best:.3f}")
assert by_complexity > random and best >= max(by_area, by_complexity)

# %% [markdown]
# ## Recap
#
# - The **ceiling** of a mask size is the score of the true mask, squeezed into the grid and pasted back: what the grid
#   alone costs.
# - Stripes need at least about one cell each. Below that, cells are wasted; a smooth outline gains in proportion.
# - Mask IoU forgives the rims of large objects, boundary IoU does not; for small objects the two are the same.
# - Small objects need small masks. Among large ones, the shape decides: the giraffe needs what the book does not.
# - Crop and paste must share one pixel convention, or the error of half a pixel eats the gain.
# - A finer grid is worth nothing without finer features to fill it. That is the next notebook.
