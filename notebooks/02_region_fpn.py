# %% [markdown]
# # 02 · The region-level FPN
#
# **Goal**: follow one object through the mask branch, from 14×14 to 112×112: what is cropped from where, how two
# deformable convolutions fit it together, and what breaks when a part is taken away.
#
# **You need**: notebook 01, convolutions, RoIAlign.
#
# **Running time**: about two minutes on two CPU cores.

# %% [markdown]
# ## From coarse to fine
#
# Notebook 01 ended with a puzzle: Mask R-CNN with more output cells gets *worse*, because a finer grid needs finer
# information. The **region-level FPN** (r-FPN) supplies it. Here is what it does to one creature of the shapes world,
# with the bundled `shapes` weights. First row: the region's feature, its three principal components shown as red,
# green and blue. Second: the mask. Third: the edges, which are predicted beside it.

# %% tags=["thumbnail"]
from lessons import pyramid

import dynamask
from dynamask.data.shapes import ShapesDataset, make_scene

predictor = dynamask.load("shapes")
scene = make_scene(seed=1001, index=14)
traced = pyramid.trace(predictor, scene.image, scene.boxes[0].tolist(), int(scene.labels[0]))
pyramid.coarse_to_fine(traced)

# %% [markdown]
# Nothing was upsampled at the end. Each mask has its own feature, twice as fine as the last and half as deep. The legs
# are one blob at 14 and drawn out at 112. How much is that worth? The boundary IoU with the true mask:

# %%
from dynamask.evaluation.mask_quality import boundary_iou
from dynamask.ops.masks import paste_mask

truth = scene.masks[0]
for probs in traced.mask_probs:
    pasted = paste_mask(probs, traced.box, truth.shape).numpy()
    print(f"{len(probs):3}×{len(probs):<3} boundary IoU {boundary_iou(truth, pasted):.3f}")

# %% [markdown]
# ## The figure, as code
#
# The paper's Fig. 2 in words. i-FPN is the image-level pyramid that every FPN detector has; L is the feature of the
# *region*, P a crop of the *image* features.
#
# ```text
# picture ─ backbone ─ i-FPN ─┬─ RoIAlign 14×14 of the box's level ─ two 3×3 convs ─ L tiny ──► mask 14, edge 14
#                             │                                                        │ halve channels, double side
#                             ├─ P4, stride 16 ─ 1×1 conv ─ RoIAlign 28×28 ────────► FAM ─ L small ──► mask 28
#                             │                                                        │
#                             ├─ P3, stride  8 ─ 1×1 conv ─ RoIAlign 56×56 ────────► FAM ─ L medium ─► mask 56
#                             │                                                        │
#                             └─ P2, stride  4 ─ 1×1 conv ─ RoIAlign 112×112 ──────► FAM ─ L large ──► mask 112
# ```
#
# Coarse stages read coarse maps, which know what the object *is*; fine stages read fine maps, which know where it
# *ends*. Let us run it by hand. First the picture, then the maps.

# %%
import torch

model = predictor.model.eval()
fpn = model.mask_branch.region_fpn
image = torch.from_numpy(scene.image).permute(2, 0, 1).float() / 255
with torch.no_grad():
    encoded, _ = model.detector.encode([image])
for key, stride in zip("0123", (4, 8, 16, 32)):
    print(f"P{int(key) + 2}, stride {stride:2}:", tuple(encoded.features[key].shape))

# %% [markdown]
# The region starts at 14×14, from the level that fits the box: large boxes from coarse levels, small ones from fine
# levels. This is the crop that Mask R-CNN's head has, too.

# %%
from torchvision.models.detection.transform import resize_boxes

from dynamask.models.masks.region_fpn import crop_assigned_level

network_size = encoded.images.image_sizes[0]
boxes = resize_boxes(torch.from_numpy(scene.boxes[:1]), scene.image.shape[:2], network_size)
rois = torch.cat([torch.zeros(1, 1), boxes], dim=1)  # (1, 5): batch index, xyxy in network-input pixels
with torch.no_grad():
    tiny = fpn.base(crop_assigned_level(encoded.features, rois, 14))
print("network input", network_size, "box there", [round(v) for v in boxes[0].tolist()])
print("L tiny", tuple(tiny.shape))

# %% [markdown]
# Now one stage, to 28×28. P4 is projected to the stage's channels **on the whole map**, once an image, and then
# cropped. The region's feature is reduced by a 1×1 convolution and upsampled to the same shape.

# %%
import torch.nn.functional as F
from torchvision.ops import roi_align

stage = fpn.stages[0]
with torch.no_grad():
    P_map = fpn.projections[0](encoded.features["2"])
    P = roi_align(P_map, rois, 28, spatial_scale=1 / 16, sampling_ratio=1, aligned=True)
    L = F.interpolate(F.relu(stage.reduce(tiny)), scale_factor=2.0, mode="bilinear", align_corners=False)
print("P map", tuple(P_map.shape), "→ P", tuple(P.shape), "  L", tuple(L.shape))

# %% [markdown]
# L and P have the same shape but do not fit. L was blurred by upsampling, and its edges may lie a cell or two from
# where P has them. The **Feature Aggregation Module** (FAM, Fig. 3) fits them together:
#
# 1. look at both, predict an offset for each of the nine taps at each cell;
# 2. *Deform Conv 1* reads L at the moved taps: L is **aligned** to P;
# 3. add P, look again, predict offsets again;
# 4. *Deform Conv 2* reads the sum at moved taps: it **attends** to the places that matter.

# %%
fam = stage.aggregate
with torch.no_grad():
    offsets = fam.align_offsets(torch.cat([L, P], dim=1))
    aligned = F.relu(fam.align(L, offsets))
    again = fam.attend_offsets(torch.cat([aligned, P], dim=1))
    small = F.relu(fam.attend(aligned + P, again))
    by_library = fpn.stage(1, tiny, P_map, rois)
print("offsets", tuple(offsets.shape), "= 9 taps × (Δy, Δx) × groups,  L small", tuple(small.shape))
assert torch.allclose(small, by_library, rtol=1e-4, atol=1e-4), "those lines are the whole stage"

# %% [markdown]
# The next two stages are the same with half the channels and twice the side. Each ends in a mask predictor, a 1×1
# convolution. This is the inside of all three, for our creature. Colours are principal components again; each picture
# has its own.

# %%
pyramid.stage_pictures(traced)

# %% [markdown]
# Read the second column downwards: P of stride 16 is a few soft spots, P of stride 4 has the outline and the pattern
# inside it. Read the rows from left to right: L and P become one feature.

# %% [markdown]
# ## Crops with their own stride
#
# A box in image pixels becomes a box on the map by division by the map's stride: 16 for P4, 8 for P3, 4 for P2. It
# sounds too trivial to mention. Yet the authors' public code divides by 4 for every level. **Predict**: what will the
# stage to 28 see?

# %%
pyramid.stride_pictures(predictor, scene.image, scene.boxes[0].tolist())

# %% [markdown]
# With the wrong stride the crop comes from another place, or from beyond the map, where there are only zeros (one flat
# colour). The last stage is unharmed, its stride *is* 4. Nothing crashes and every shape is right; a network can even
# be trained with it, and may learn to ignore those crops. We shall measure the damage below.

# %% [markdown]
# ## What the offsets do
#
# A 3×3 convolution reads nine neighbours. A deformable one reads nine places of its own choice, between cells if need
# be. The mean of the nine offsets says where a cell gets its content from. Here it is for Deform Conv 1 at 28×28, as
# arrows over the picture in the box, at true length, for every other cell.

# %%
pyramid.offset_arrows(traced, size_index=1)

# %% [markdown]
# Are the arrows more than noise? Compare neighbouring cells: for noise, the mean cosine between their arrows would be
# about 0. How far do the arrows reach?

# %%
for stage_trace in traced.stages:
    for name, field in (("Deform Conv 1", stage_trace.align_offsets), ("Deform Conv 2", stage_trace.attend_offsets)):
        mean = pyramid.mean_offset(field)
        reach = torch.linalg.vector_norm(mean, dim=0).mean()
        print(
            f"{name} at {stage_trace.size:3}: {reach:.2f} cells or {reach / stage_trace.size:.1%} of the box,",
            f"cosine between neighbours {pyramid.neighbour_agreement(field):+.2f}",
        )
        assert pyramid.neighbour_agreement(field) > 0.2

# %%
pyramid.offset_arrows(traced, size_index=3, stretch=4)

# %% [markdown]
# The mean hides the nine single taps. Move the slider: circles are what a plain convolution would read for this cell,
# crosses are what the deformable one reads.

# %%
pyramid.sampling_slider(traced, size_index=1, rows=range(2, 28, 3), column=14)

# %% [markdown]
# Turn the question around: how often is each place *read*, by all cells together? A plain convolution reads every
# place nine times. Where the deformable one reads more often, it pays attention.

# %%
pyramid.attention_pictures(traced)

# %% [markdown]
# The number of readings is fixed, so places compete for them: an attention without a softmax. What the maps do not say
# is *why* a place is read; for that we must interfere.

# %% [markdown]
# ## Take parts away
#
# We set offsets to zero while the model runs. The weights stay, the deformable convolutions become plain ones.
# **Predict**: which of the two convolutions is missed more? And is 14×14 affected at all?

# %%
from lessons import fast

scenes = ShapesDataset(fast(4, 40), seed=1001)
scores = {"as trained": pyramid.boundary_scores(predictor, scenes)}
with pyramid.zero_offsets(fpn, align=False, attend=True):
    scores["no offsets in Deform Conv 2"] = pyramid.boundary_scores(predictor, scenes)
with pyramid.zero_offsets(fpn, align=True, attend=False):
    scores["no offsets in Deform Conv 1"] = pyramid.boundary_scores(predictor, scenes)
with pyramid.zero_offsets(fpn):
    scores["no offsets at all"] = pyramid.boundary_scores(predictor, scenes)
print(len(scores["as trained"]), "objects, in their true boxes")
pyramid.ablation_bars(scores, "Without offsets")

# %%
trained, without = scores["as trained"].mean(axis=0), scores["no offsets at all"].mean(axis=0)
print("boundary IoU lost without offsets, by size:", (trained - without).round(3))
assert abs(trained[0] - without[0]) < 1e-9, "the 14×14 mask is made before any deformable convolution"
assert (without[1:] < trained[0]).all(), "every finer mask is now worse than the 14×14 one"
first, second = (scores[f"no offsets in Deform Conv {i}"].mean(axis=0) for i in (1, 2))
assert (first[1:] < second[1:]).all(), "Deform Conv 1 is missed more"

# %% [markdown]
# Without offsets, the finer masks fall *below* the 14×14 one. The model relies on its offsets, mostly on those of
# Deform Conv 1, which carry L to its place.
#
# Mind what this does and does not show. A network that was *trained* without offsets would find other ways. A run-time
# ablation tells what these weights use, not what the design is worth.
#
# The same game with the crops: another stride, no alignment (half a cell off), and no P at all.

# %%
crops = {"as trained": scores["as trained"]}
with pyramid.crops_with_stride(fpn, 4):
    crops["every P cropped with stride 4"] = pyramid.boundary_scores(predictor, scenes)
with pyramid.crops_not_aligned(fpn):
    crops["RoIAlign not aligned"] = pyramid.boundary_scores(predictor, scenes)
with pyramid.without_image(fpn):
    crops["no P: L alone"] = pyramid.boundary_scores(predictor, scenes)
pyramid.ablation_bars(crops, "Other crops")

# %%
for name, values in crops.items():
    print(f"{name:30} at 28, 56, 112:", values.mean(axis=0)[1:].round(3))
stride_4, half_off, alone = (values.mean(axis=0) for values in list(crops.values())[1:])
assert half_off[2] < trained[1] and half_off[3] < trained[1], "half a cell off costs all that 56 and 112 gain over 28"
assert trained[3] - stride_4[3] < trained[2] - stride_4[2], "the last stage repairs what wrong strides did before it"
assert alone[3] < alone[1] < trained[1], "without P, cells beyond 28×28 gain nothing"

# %% [markdown]
# - **Half a cell hurts**: it takes all that 56 and 112 gain over 28. Half a cell of P2 is two pixels of the network's
#   input.
# - **The wrong stride** costs 28 and 56. At 112 the last stage, whose own stride is 4, repairs most of it. That
#   explains how such a bug can live in code that always returns the largest mask.
# - **Without P**, cells beyond 28×28 gain nothing. Mask R-CNN with a larger output has no P either: that is the answer
#   to the puzzle of notebook 01.
#
# How good is the whole idea against other pyramids for the same job? The paper's Table S3 (COCO, mask AP): PANet 35.9,
# BiFPN 36.4, NAS-FPN 36.0, DynaMask 37.6.

# %% [markdown]
# ## On a photograph
#
# The same walk with the weights `things`, on a photograph that training never saw. Their detector is NanoDet-Plus; the
# mask branch is of the same kind, but its stages read maps of strides 8, 4 and 4, because pictures are only 416 pixels
# wide. These weights compute fine masks only near the outline (lesson 03); `refine="dense"` computes every cell, as in
# the paper.

# %%
from lessons import photograph

from dynamask.data.pictures import read_picture

things = dynamask.load("things", refine="dense")
picture = read_picture(photograph("astronaut"))
prediction = things(picture)
astronaut = pyramid.trace(things, picture, prediction.boxes[0].tolist(), int(prediction.labels[0]))
pyramid.coarse_to_fine(astronaut)

# %% [markdown]
# Real outlines are softer than drawn ones, and so are these masks and edges. The order of events is the same.

# %% [markdown]
# ## Finer is not always better
#
# From 56 to 112 the mask of this snowflake gets *worse*: parts of its arms that were there go missing.

# %%
other = make_scene(seed=1001, index=10)
snowflake = pyramid.trace(predictor, other.image, other.boxes[0].tolist(), int(other.labels[0]))
pasted = [paste_mask(probs, snowflake.box, other.masks[0].shape).numpy() for probs in snowflake.mask_probs]
ious = [boundary_iou(other.masks[0], mask) for mask in pasted]
print("boundary IoU", [round(iou, 3) for iou in ious])
assert ious[3] < ious[2]
pyramid.mask_pictures(other.image, other.masks[0], snowflake.box, pasted)

# %% [markdown]
# The full cost buys a loss here. A good choice of size is therefore no matter of thrift alone; notebooks 04 and 05 are
# about who chooses.

# %% [markdown]
# ## Exercises
#
# **1.** A deformable convolution with zero offsets *is* a convolution. Check that on `stage.aggregate.align` and a
# random input against `F.conv2d`.

# %% tags=["solution"] jupyter={"source_hidden": true}
x = torch.randn(1, 32, 28, 28, generator=torch.Generator().manual_seed(0))
layer = stage.aggregate.align
with torch.no_grad():
    deformed = layer(x, torch.zeros(1, layer.offset_channels, 28, 28))
    plain = F.conv2d(x, layer.weight, layer.bias, padding=1)
print("largest difference", float((deformed - plain).abs().max()))
assert torch.allclose(deformed, plain, atol=1e-4)

# %% [markdown]
# **2.** Offsets of (Δy, Δx) = (0, 1) everywhere read one cell further right. What is the result compared with the
# plain convolution? Check all but the last two columns.

# %% tags=["solution"] jupyter={"source_hidden": true}
right = torch.zeros(1, layer.offset_channels, 28, 28)
right[:, 1::2] = 1.0  # pairs are (Δy, Δx)
with torch.no_grad():
    shifted = layer(x, right)
# What stands at column c is what the plain convolution has at c + 1. Column 27 would need one beyond the border.
assert torch.allclose(shifted[..., 1:-2], plain[..., 2:-1], atol=1e-4)

# %% [markdown]
# **3.** Do the edge predictors know where the mask ends? Take the cells at 112×112 where the creature's predicted mask
# has its edge (`dynamask.ops.masks.mask_edges`), and compare the mean edge probability there and elsewhere.

# %% tags=["solution"] jupyter={"source_hidden": true}
from dynamask.ops.masks import mask_edges

on_edge = mask_edges((traced.mask_probs[3] >= 0.5).float()[None])[0] > 0
there, elsewhere = traced.edge_probs[3][on_edge].mean(), traced.edge_probs[3][~on_edge].mean()
print(f"mean edge probability: {there:.2f} on the mask's edge, {elsewhere:.2f} elsewhere")
assert there > 2 * elsewhere

# %% [markdown]
# **4.** Who needs the offsets? Correlate (Spearman) what each object loses without offsets at 112 with the complexity
# of its outline. The complexities are in `scene.complexity`, in the order of the objects.

# %% tags=["solution"] jupyter={"source_hidden": true}
import numpy as np

from dynamask.evaluation.choices import spearman

complexity = np.concatenate([scenes.scene(index).complexity for index in range(len(scenes))])
lost = (scores["as trained"] - scores["no offsets at all"])[:, 3]
print(f"Spearman {spearman(lost, complexity):+.2f} over {len(lost)} objects")
assert len(lost) == len(complexity)

# %% [markdown]
# ## Recap
#
# - The r-FPN refines a *region*: side doubles, channels halve, and each stage is given image features of its own
#   fineness.
# - Projections run on whole maps, once an image; crops use the stride of their map, aligned.
# - The FAM is two deformable convolutions: the first carries the region's feature to where the image has it, the
#   second chooses where to look.
# - Taking parts away at run time shows what trained weights rely on: offsets, alignment, and P.
# - Each stage is a stop: nothing forces an instance to go on. What that saves is notebook 03.
