# %% [markdown]
# # 06 · Judging
#
# **Goal**: read a budget curve, compute an average precision by hand, and tell a switch that knows something from one
# that is merely expensive.
#
# **You need**: notebook 03 or its recap: policies and budgets. Some statistics helps: what a bootstrap interval is.
#
# **Running time**: about four minutes on two cores.

# %% [markdown]
# ## The result first
#
# Every scene is predicted once, with the masks of all four sizes, in the true boxes and in the detector's own. The
# seed is one that no training and no tuning saw.

# %%
from lessons import fast

from dynamask import load
from dynamask.data.shapes import ShapesDataset
from dynamask.reports.collect import collect
from dynamask.reports.options import CollectOptions

predictor = load("shapes")
scenes = ShapesDataset(fast(10, 60), seed=1002)
everything = list(range(len(scenes)))
kept = collect(predictor, scenes, everything, CollectOptions(views=fast(1, 3)))
macs = predictor.costs.macs_per_instance
objects, detections = len(kept.true_boxes.results), len(kept.detections.results)
print(f"{len(scenes)} scenes, {objects} objects in true boxes, {detections} detections")

# %% [markdown]
# From then on no model is needed: a policy only picks one of four masks that are there. So a whole curve takes
# seconds.

# %%
from lessons.judging import curves, curves_figure

from dynamask.reports.options import CurveOptions

options = CurveOptions(budgets=fast(4, 9), views=fast(1, 3))
result = curves(kept, macs, scenes, options, samples=fast(100, 500), ap_samples=fast(20, 100))
curves_figure(result.points, "gt", ("mask_iou", "boundary_iou"), "In true boxes: quality against cost")

# %% [markdown]
# How to read it. To the right is dearer, up is better. The thick line is the switch, held to a budget by a price; the
# star is what it does freely. Dots are policies that need no switch. Click a name in the legend to hide it, hover for
# the interval.
#
# A policy is good if it lies **above the others at the same cost**. A point that is higher *and* further to the right
# proves nothing. The rest of this notebook takes the picture apart: what is on the axes, what the other lines are,
# and how sure the differences are.

# %% [markdown]
# ## Average precision by hand
#
# Take one class, all at 28×28, and one IoU threshold. Sort the detections by score. Each takes the true object that
# it overlaps most, if the IoU reaches the threshold and nobody took it before. That is a hit; all else are misses.

# %%
from collections import Counter

import numpy as np
from lessons.judging import detections_of_class

from dynamask.structures import MASK_SIZES

at_28 = np.full(len(kept.detections.results), MASK_SIZES.index(28))
names = Counter(scenes.class_names[r["category_id"]] for r in kept.true_boxes.results)
name = names.most_common(1)[0][0]
detections = detections_of_class(kept.detections, at_28, scenes, name)
print(f"{name}: {sum(map(len, detections.scores))} detections of {detections.positives} objects")

# %% [markdown]
# Go down the list. After each detection: how many of those so far are hits (precision), and how many of the objects
# are found (recall)? Move the slider to ask for more overlap.

# %%
from lessons.judging import precision_recall_figure
from lessons.picture_grids import with_slider

thresholds = np.linspace(0.5, 0.95, 10)
curves = {f"{t:.2f}": detections.curve(t) for t in thresholds}
with_slider({t: precision_recall_figure(curve) for t, curve in curves.items()}, prefix="IoU ≥ ", axis_title=True)

# %% [markdown]
# The blue line is the *envelope*: the best precision at this recall or further right. COCO reads it at 101 recalls
# and takes the mean. That is one AP at one threshold; the headline AP is the mean over ten thresholds. Ours, and the
# evaluator's:

# %%
from lessons.judging import coco_of_class

from dynamask.evaluation.coco_ap import evaluate_coco

by_hand = [curve.ap for curve in curves.values()]
coco, results = coco_of_class(kept.detections, at_28, scenes, name)
theirs = evaluate_coco(coco, results, ("segm",))["segm"]
print(f"AP50 by hand {by_hand[0]:.6f}, evaluator {theirs['AP50']:.6f}")
print(f"AP   by hand {np.mean(by_hand):.6f}, evaluator {theirs['AP']:.6f}")
assert np.isclose(by_hand[0], theirs["AP50"]) and np.isclose(np.mean(by_hand), theirs["AP"])

# %% [markdown]
# ## What mask IoU does not see
#
# Here is the object that gains most from the finest size, at every size. Boundary IoU compares only the *rims*: the
# pixels within reach of the border.

# %%
from lessons.judging import rim
from lessons.picture_grids import error_picture, mask_window, picture_grid
from lessons.training_runs import masks_by_size

quality = {m: kept.true_boxes.quality(m) for m in ("mask_iou", "boundary_iou")}
neediest = int((quality["boundary_iou"][:, -1] - quality["boundary_iou"][:, 0]).argmax())
index, row = scenes.image_ids.index(kept.true_boxes.results[neediest]["image_id"]), kept.true_boxes.truth[neediest]
_, truth, masks = masks_by_size(predictor.model, scenes, index, row)
window = mask_window(truth)
titles = [
    [f"{s}: mask IoU {quality['mask_iou'][neediest, k]:.2f}" for k, s in enumerate(MASK_SIZES)],
    [f"boundary IoU {quality['boundary_iou'][neediest, k]:.2f}" for k in range(len(MASK_SIZES))],
]
whole = [error_picture(truth, mask)[window] for mask in masks]
rims = [error_picture(rim(truth), rim(mask))[window] for mask in masks]
picture_grid([whole, rims], titles, "Grey: right. Red: missed. Blue: added.", cell=180)

# %% [markdown]
# The inside of an object is easy and large, so it drowns the outline in mask IoU. The rim has no inside. All objects
# at once, each with its coarsest and its finest mask:

# %%
from lessons.judging import iou_scatter

iou_scatter(quality["mask_iou"], quality["boundary_iou"], sizes=(14, 112))

# %% [markdown]
# ## One size for all
#
# The simplest policies give every object the same size. The paper's Tab. 7 does this on COCO; here it is on our
# scenes, on detections.

# %%
from lessons.judging import FIXED, PAPER_TABLE_7, baselines
from lessons.table import MarkdownTable

from dynamask.evaluation.resampled_ap import ResampledAP

judge = ResampledAP(scenes.coco, kept.detections.results, kept.detections.rles, scenes.image_ids)
found = baselines(kept.detections, macs, scenes, judge)
measures = ("segm", "boundary", "gmacs")
fixed = [[size, *(found[policy][m] for m in measures)] for size, policy in zip(MASK_SIZES, FIXED)]
MarkdownTable(["all at", "mask AP", "boundary AP", "GMACs"], fixed)

# %% [markdown]
# The paper's row, for its own model on COCO val 2017 (Tab. 7). It stands apart, because nothing about it can be
# compared with the table above but its shape: other data, another model, and AP in per cent.

# %%
rows = [[size, f"{ap:.1f}"] for size, ap in PAPER_TABLE_7.items()]
MarkdownTable(["all at", "mask AP, COCO (paper, Tab. 7), %"], rows)

# %% [markdown]
# In both, finer is better. How much does each doubling buy? The differences between neighbours:

# %%
gains = [found[b]["segm"] - found[a]["segm"] for a, b in zip(FIXED[:-1], FIXED[1:])]
theirs = np.diff(list(PAPER_TABLE_7.values()))
MarkdownTable(
    ["step", "ours, mask AP", "paper's, AP in %"],
    [[f"{a} → {b}", f"{g:+.3f}", f"{t:+.1f}"] for a, b, g, t in zip(MASK_SIZES[:-1], MASK_SIZES[1:], gains, theirs)],
)

# %% [markdown]
# ## By size, at random, and by an oracle
#
# Three ways to give different sizes to different objects, without a switch:
#
# - **size-based** (Eq. 8): large boxes get large masks;
# - **random**: the very sizes that the switch gave, dealt out blindly, so its cost is the same;
# - **oracle**: knows the IoU of every mask and spends the same MACs in the best way. Nobody can beat it in mean IoU.

# %%
from lessons.judging import PAPER_SHARES

rows = []
for policy in ("size", "random", "learned", "oracle"):
    one = found[policy]
    rows.append([policy, *(f"{s:.0%}" for s in one["shares"]), f"{one['gmacs']:.4f}", one["segm"], one["boundary"]])
MarkdownTable(["policy", "14", "28", "56", "112", "GMACs", "mask AP", "boundary AP"], rows)

# %% [markdown]
# And the paper's Tab. S1, again of COCO and apart:

# %%
rows = [
    [policy, *(f"{s:.0%}" for s in sizes), f"{cost:.2f}", f"{ap:.1f}"]
    for policy, (sizes, cost, ap) in PAPER_SHARES.items()
]
MarkdownTable(["policy (paper, Tab. S1)", "14", "28", "56", "112", "GMACs", "mask AP, COCO, %"], rows)

# %% [markdown]
# Careful: `size` spends less than `learned` in our table, and in the paper's as well. A fair comparison gives the
# switch the other's budget, over the whole data set:

# %%
from dynamask.reports.size_choices import at_budget, mean_macs

logits = kept.detections.logits()
fair = []
for rival in ("size", *FIXED[1:3]):
    ours = at_budget(logits, macs, mean_macs(found[rival]["choice"], macs))
    ap = {k: float(judge.average_precision(judge.match(ours, k))[0]) for k in ("segm", "boundary")}
    fair.append(
        [
            rival,
            f"{mean_macs(ours, macs) / 1e9:.4f}",
            f"{found[rival]['gmacs']:.4f}",
            *(f"{ap[k] - found[rival][k]:+.3f}" for k in ("segm", "boundary")),
        ]
    )
MarkdownTable(["learned minus …", "learned spends", "it spends", "mask AP", "boundary AP"], fair)

# %% [markdown]
# ## How sure is that?
#
# These are few scenes. Another draw would give other numbers. The bootstrap asks how different: draw as many
# *pictures* as there are, with replacement, and compute the figure again; and again. The objects of one picture share
# its light, its clutter and its detector's mood, so pictures are drawn, not objects.
#
# The figure here is the gain of the learned sizes over the same sizes dealt at random, in true boxes. Each object is
# compared with itself, so the ease of an object cancels out.

# %%
from lessons.judging import bootstrap_figure

from dynamask.evaluation.bootstrap import PictureBootstrap
from dynamask.evaluation.choices import at, permuted

bootstrap = PictureBootstrap(scenes.image_ids, samples=fast(200, 2000))
pictures = bootstrap.rows(np.array([r["image_id"] for r in kept.true_boxes.results]))
learned = np.array(kept.true_boxes.choice)
difference = at(quality["mask_iou"], learned) - permuted(quality["mask_iou"], learned)
estimate = bootstrap.interval(difference, pictures)
bootstrap_figure(
    bootstrap.resampled_means(difference, pictures), estimate, title="Learned minus random at equal cost, mean mask IoU"
)

# %% [markdown]
# The dashed lines are the 95 % interval, the red line is no difference at all. If the red line lies outside, the
# switch knows something about the objects that chance does not.
#
# The mean over all permutations was taken exactly, by the way: an object gets size k with the probability that is the
# share of k, so its expected quality is a weighted mean. No dice were needed. Dice agree:

# %%
rng = np.random.default_rng(0)
thrown = [at(quality["mask_iou"], rng.permutation(learned)).mean() for _ in range(fast(200, 2000))]
exact = permuted(quality["mask_iou"], learned).mean()
print(f"exact {exact:.5f}, mean of {len(thrown)} permutations {np.mean(thrown):.5f}")

# %% [markdown]
# ## How much of the possible?
#
# Dealing the same sizes at random is the floor, the oracle the ceiling. Move the budget: where does choosing matter
# most? At the ends everyone has the same sizes, so there nothing can be gained.

# %%
from lessons.judging import budget_figure

steps = np.linspace(0.2, 0.55, fast(3, 8))
with_slider(
    {f"{s:.0%}": budget_figure(kept.true_boxes, macs, bootstrap, s) for s in steps},
    prefix="budget, share of the full MACs: ",
    axis_title=True,
)

# %% [markdown]
# One number for it: the **share of the oracle's gain**, (learned − random) / (oracle − random), at equal cost. Part
# of the oracle's gain is luck that nobody can foresee: which of two equally fit masks happens to have three pixels
# more. So there is a second oracle that chooses by *other views* of the object, flipped and with shifted boxes, and
# is judged on the view that it did not see.

# %%
from lessons.judging import share_rows

MarkdownTable(
    ["spent", "of the oracle's gain", "of the noise-aware oracle's", "the same in boundary IoU"],
    share_rows(result.points),
)

# %% [markdown]
# ## On detections
#
# Mean IoU in true boxes is a clean measure: nothing but the masks differs. AP is what people report. It also asks
# whether the objects were found, so the masks weigh less in it.

# %%
curves_figure(result.points, "detected", ("segm_ap", "boundary_ap"), "On detections: AP against cost")

# %% [markdown]
# The paper's Tab. 5 names two operating points: one that loses no AP, and one at about half the cost. Ours:

# %%
from dynamask.reports.render import with_interval

points = result.operating_points
named = {"cheapest within 0.001 mask AP of all at 112": points["within_drop"], "half of the cost": points["half"]}
rows = []
for title, point in named.items():
    gap = with_interval(point["segm_ap_minus_full"], 3, signed=True) if point else "–"
    rows.append([title, f"{point['saved']:.0%}" if point else "no budget is", gap])
MarkdownTable(["operating point", "MACs saved", "mask AP minus full"], rows)

# %% [markdown]
# The paper saves 19 % without loss and 54 % at a loss of 0.8 points of AP on COCO (Tab. 5). In this world of shapes
# the fine sizes are worth more, so there is no free lunch to be expected.

# %% [markdown]
# ## Who gets the fine masks?
#
# Fig. 8 of the paper shows it by class: giraffes get large masks, books small ones. Our classes, in true boxes; the
# slider moves the budget. Predict which class keeps its fine masks longest.

# %%
from lessons.judging import classes_figure

given_logits = kept.true_boxes.logits()
by_budget = {
    f"{share:.0%}": classes_figure(kept.true_boxes, scenes, at_budget(given_logits, macs, share * macs[-1]))
    for share in np.linspace(0.2, 0.55, fast(3, 8))
}
with_slider(by_budget, "budget, share of the full MACs: ", active=len(by_budget) - 1, axis_title=True)

# %% [markdown]
# Does the switch look at the outline, or only at the size of the box? In this world the complexity of every outline
# is known, so we can ask. Spearman's correlation with the chosen size, at half the full cost:

# %%
known = result.known_complexity
MarkdownTable(
    ["chosen size against", "Spearman", "95 % interval"],
    [
        [what, f"{known[key].mean:.2f}", f"[{known[key].low:.2f}, {known[key].high:.2f}]"]
        for what, key in (("known complexity", "complexity"), ("√ of the box area", "object_size"))
    ],
)

# %% [markdown]
# The full reports, with more scenes and all tables, are one command each: `dynamask report budget-curve` and
# `dynamask report classes`. `docs/shapes-budget-curve.md` is one of them.

# %% [markdown]
# ## Exercises
#
# **1.** Five detections by falling score: hit, miss, hit, hit, miss. There are four objects. Compute the AP on paper,
# then with `precision_recall`.

# %% tags=["solution"] jupyter={"source_hidden": true}
from lessons.judging import precision_recall

curve = precision_recall([0.9, 0.8, 0.7, 0.6, 0.5], [True, False, True, True, False], positives=4)
# Recalls 0 … 0.25 have precision 1 (26 of them), 0.26 … 0.75 have 3/4 (50), the rest was never found (25).
on_paper = (26 * 1 + 50 * 3 / 4 + 25 * 0) / 101
assert np.isclose(curve.ap, on_paper)
print(f"{on_paper:.4f}")

# %% [markdown]
# **2.** A detector that finds everything twice: what does a second, equal detection of every object cost in AP, if it
# has a lower score than all the first ones? And if it comes right behind its twin?

# %% tags=["solution"] jupyter={"source_hidden": true}
behind = precision_recall(np.linspace(1, 0.1, 20), [True] * 10 + [False] * 10, positives=10).ap
beside = precision_recall(np.linspace(1, 0.1, 20), [True, False] * 10, positives=10).ap
assert behind == 1.0  # all is found before the first miss
assert 0.5 < beside < 0.65  # precision falls towards one half
print(behind, round(beside, 3))

# %% [markdown]
# **3.** Compute the share of the oracle's gain in boundary IoU at half the full cost, from `quality["boundary_iou"]`,
# with `best_under_budget`, `permuted` and `at`.

# %% tags=["solution"] jupyter={"source_hidden": true}
from dynamask.ops.knapsack import best_under_budget

choice = at_budget(given_logits, macs, macs[-1] / 2)
oracle = best_under_budget(quality["boundary_iou"], macs, mean_macs(choice, macs))
learned_mean, oracle_mean = (at(quality["boundary_iou"], sizes).mean() for sizes in (choice, oracle))
random_mean = permuted(quality["boundary_iou"], choice).mean()
share = (learned_mean - random_mean) / (oracle_mean - random_mean)
assert oracle_mean >= max(learned_mean, random_mean) and share <= 1
print(f"{share:.2f}")

# %% [markdown]
# **4.** Draw objects instead of pictures in the bootstrap. Is the interval wider or narrower, and why? Check your own
# draws against `bootstrap.resampled_means` by giving it one weight per picture.

# %% tags=["solution"] jupyter={"source_hidden": true}
weights = bootstrap.weights[0]
redrawn = np.repeat(difference, weights[pictures])
assert np.isclose(redrawn.mean(), bootstrap.resampled_means(difference, pictures)[0])
rng = np.random.default_rng(1)
own = [difference[rng.integers(0, len(difference), len(difference))].mean() for _ in range(1000)]
objects = np.subtract(*np.quantile(own, [0.975, 0.025]))
by_picture = estimate.high - estimate.low
assert objects > 0 and by_picture > 0
print(f"width by objects {objects:.4f}, by pictures {by_picture:.4f}")

# %% [markdown]
# ## Recap
#
# - Predict once at all sizes; every policy is then a choice among masks that are there.
# - AP is the area under an envelope, read at 101 recalls, averaged over thresholds and classes. Boundary IoU looks at
#   the rim, where mask resolution shows.
# - Compare at equal cost, pair the objects, and resample pictures.
# - Random and the oracle bound what a switch can do; the share of the oracle's gain says how far it gets.
