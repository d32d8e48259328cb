# %% [markdown]
# # 07 · Your data
#
# **Goal**: from a folder of pictures with COCO annotations to an evaluated model, and to the app with your weights in
# it.
#
# **You need**: nothing of the other notebooks. Your own folder if you have one; otherwise this notebook makes one.
#
# **Running time**: about seven minutes on two cores, most of it training.

# %% [markdown]
# ## The whole way, in commands
#
# This is where we are going. Every line is run below, and each has its twin in Python.
#
# ```
# dynamask data check --data mine                  what is in it, and what is broken?
# dynamask analyze --data mine                     which classes need fine masks?
# dynamask train --data mine --init … --out run    a few minutes, from weights that know how to outline
# dynamask evaluate --weights run/last.safetensors --data mine
# dynamask predict --weights run/last.safetensors --image … --out pictures
# python -m app --weights run/last.safetensors
# ```
#
# In a notebook the commands go through a `Terminal`: it runs the very same `dynamask …` in one process beside the
# notebook, so that PyTorch is loaded once. In a shell, type what stands behind the `$`.

# %%
import tempfile
from pathlib import Path

from lessons import fast
from lessons.own_data import Terminal

MY_FOLDER = None  # put the path of your own folder here: one with images/ and annotations.json

folder = tempfile.TemporaryDirectory(prefix="dynamask-07-")
work = Path(folder.name)
terminal = Terminal(work)
mine = work / "mine" if MY_FOLDER is None else Path(MY_FOLDER)

# %% [markdown]
# ## A folder
#
# Without one of your own, here is one: drawn scenes with ten classes, exported exactly as a labelling tool would.

# %%
made = None if MY_FOLDER else terminal("shapes", "--images", fast(12, 120), "--seed", 2007, "--out", mine)
made or f"your own folder: {mine}"

# %% [markdown]
# COCO's format is three lists. An image has a file and a size; an annotation belongs to an image and a category, and
# has a box (x, y, width, height) and a mask: polygons, or a run-length code as here.

# %%
import json

coco = json.loads((mine / "annotations.json").read_text(encoding="utf-8"))
print({key: len(value) for key, value in coco.items() if isinstance(value, list)})
print(coco["images"][1])
print({key: value for key, value in coco["annotations"][0].items() if key != "segmentation"})

# %% [markdown]
# Some pictures hold nothing; they are welcome. A detector that never saw an empty picture finds things everywhere.

# %%
from lessons.picture_grids import picture_grid

from dynamask.data.sources import open_data
from dynamask.viz.overlay import draw_overlay

data = open_data(str(mine))
shown = [i for i in range(len(data)) if len(data.target(i)["boxes"])][:3]
drawn, titles = [], []
for i in shown:
    image, target = data[i]
    names = [data.class_names[label] for label in target["labels"].tolist()]
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    drawn.append(draw_overlay(pixels, target["masks"].numpy().astype(bool), [112] * len(names), labels=names))
    titles.append(coco["images"][i]["file_name"])
picture_grid([drawn], [titles], "The true masks of the first pictures, drawn as a 112 is", cell=240)

# %% [markdown]
# ## Is it sound?

# %%
terminal("data", "check", "--data", mine)

# %% [markdown]
# Labels break in practice: an export is cut short, pictures are renamed, somebody edits the JSON. Break it on
# purpose, in four ways, and predict which of them is found:

# %%
from dynamask.data.check import check_data

broken = json.loads(json.dumps(coco))
broken["annotations"][0]["image_id"] = 987654  # an image that is not there
broken["annotations"][1]["bbox"][2] = 0.0  # a box without width
broken["annotations"][2]["segmentation"]["counts"] = "oops"  # a run-length code that is none
broken["images"][3]["file_name"] = "lost.png"  # a picture that is not there
path = work / "broken.json"
path.write_text(json.dumps(broken), encoding="utf-8")
terminal("data", "check", "--annotations", path, "--images", mine / "images")

# %% [markdown]
# All four. In Python the same findings are a list, so a script can mend what is listed:

# %%
report = check_data(path, mine / "images")
print(report["errors"], "errors,", report["warnings"], "warnings;", report["finding_counts"])
report["findings"][0]

# %% [markdown]
# `data check` goes on to the end. The other commands stop at the first mistake: one line, exit code 2, nothing
# half-written.

# %%
terminal("evaluate", "--weights", "things", "--images", mine / "images", "--annotations", path)

# %% [markdown]
# ## What does it need?
#
# Before any training: how fine must a mask be to hold your outlines at all? `analyze` squeezes every true mask into
# M×M cells, pastes it back and compares. No model takes part, so it is an upper bound on all of them.

# %%
needs = terminal("analyze", "--data", mine, "--out", work / "needs")
needs

# %%
from dynamask.data.coco_format import read_coco
from dynamask.evaluation.ideal_masks import ideal_quality, summarise
from dynamask.viz.required_size import required_size_by_class

content = read_coco(coco)
summary = summarise(ideal_quality(content.coco, content.rles))
required_size_by_class(summary)

# %% [markdown]
# Read a row from left to right: 14 to 112. The large dot is the smallest size whose mean boundary IoU reaches 95 %.
# If all your classes were content with 28, you would not need this method. If they differ, a switch has something to
# decide.

# %% [markdown]
# ## Weights to begin with
#
# From scratch a detector needs hours. The bundled weights `things` know 80 classes of photographs by name, and outline
# whatever is in a box. Every fourth picture is kept back (by a hash of its id, so the split is the same for every
# command). What do the weights make of those as they are? Classes are matched by name; the drawn scenes share one with
# COCO, the *book*, and a drawing is not a photograph:

# %%
before = work / "before.json"
terminal("evaluate", "--weights", "things", "--data", mine, "--holdout", 4, "--json", before)

# %% [markdown]
# ## A few minutes of training
#
# - `--init things` takes all weights, the switch included. Classes of the same name keep their scores; those of the
#   other classes begin at random, and the message says which.
# - They must be learned quickly, so the detector gets the full learning rate: `--backbone-lr-factor 1`.
# - The scenes are small. `--min-sizes` and `--test-min-size` let the network work on 256×256 instead of 416×416.
# - `--holdout 4` keeps the same pictures back, and the run is evaluated on them at the end.

# %%
run = work / "run"
flags = ["--data", mine, "--holdout", 4, "--model", "dynamask_nanodet_plus_m_1.5x", "--init", "things"]
flags += ["--iterations", fast(2, 60), "--batch-size", fast(1, 4), "--lr", 1e-3, "--backbone-lr-factor", 1]
flags += ["--warmup", fast(1, 6), "--warm-start", 0, "--ema-decay", 0.9, "--mask-rois", fast(1, 2)]
flags += ["--min-sizes", fast(64, 256), "--test-min-size", fast(64, 256), "--log-every", 1]
terminal("train", *flags, "--out", run)

# %% [markdown]
# Everything the run knew is in its folder: the weights with their own configuration, the state to go on from, the
# log.

# %%
from lessons.live import losses_figure
from lessons.own_data import history_of

print(sorted(p.name for p in run.iterdir()))
losses_figure(history_of(run), ("loss_quality", "loss_giou", "loss_mask", "loss_boundary"), "The run, step by step")

# %% [markdown]
# Single steps jump: each sees a few pictures. Judge by the pictures kept back.

# %% [markdown]
# ## Did it help?
#
# AP is the mean over the classes that the weights know: as they came only the *book*, after the training all of them.

# %%
from lessons.table import MarkdownTable

weights, after = run / "last.safetensors", work / "after.json"
answer = terminal("evaluate", "--weights", weights, "--data", mine, "--holdout", 4, "--json", after)
was, now = (json.loads(p.read_text(encoding="utf-8")) for p in (before, after))
rows = [[kind, was[kind]["AP"], now[kind]["AP"]] for kind in ("bbox", "segm", "boundary")]
rows.append(["mean GMACs", *((one["mean_macs_per_instance"] or 0) / 1e9 for one in (was, now))])
MarkdownTable(["pictures kept back", "things, as they came", "after the training"], rows)

# %% [markdown]
# And is the switch worth having on your data? The fixed sizes are its competitors, and a budget keeps it as cheap as
# any of them:

# %%
from dynamask import load
from dynamask.data import split_by_image_id
from dynamask.engine.evaluate import EvaluationOptions, run_evaluation

predictor = load(weights)
judged = open_data(str(mine), class_names=predictor.class_names)
kept_back = split_by_image_id(judged, True, 4)
choices = {"learned": {}, "fixed:28": {"policy": "fixed:28"}, "fixed:112": {"policy": "fixed:112"}}
choices["learned, as cheap as 28"] = {"budget": predictor.costs.macs_per_instance[1] / 1e9, "budget_scope": "dataset"}
rows = []
for name, choice in choices.items():
    one = run_evaluation(predictor, judged, kept_back, EvaluationOptions(**choice))
    sizes = " / ".join(f"{share or 0:.0%}" for share in one["size_shares"].values())
    gmacs = (one["mean_macs_per_instance"] or 0) / 1e9
    rows.append([name, one["segm"]["AP"], one["boundary"]["AP"], f"{gmacs:.4f}", sizes])
MarkdownTable(["policy", "mask AP", "boundary AP", "mean GMACs", "14 / 28 / 56 / 112"], rows)

# %% [markdown]
# A few minutes move detector and masks. A switch needs more to learn what your outlines need: exercise 3 trains it
# alone.

# %% [markdown]
# ## Use it
#
# On a picture, from the command line:

# %%
picture = mine / "images" / data.coco["images"][kept_back[-1]]["file_name"]
terminal("predict", "--weights", weights, "--image", picture, "--out", work / "pictures")

# %%
import numpy as np
from PIL import Image

overlay = np.asarray(Image.open(work / "pictures" / f"{picture.stem}.png").convert("RGB"))
original = np.asarray(Image.open(picture).convert("RGB"))
picture_grid([[original, overlay]], [["the picture", "its masks, each with its size"]], cell=300)

# %% [markdown]
# In Python, and with a slider for the budget. Click an object to see why it has its size:

# %%
from dynamask.viz import explore

prediction = predictor(picture, all_sizes=True)
explore(prediction)

# %% [markdown]
# ## The app with your weights
#
# One command serves the page of the project with your weights in it:
#
# ```
# python -m app --weights run/last.safetensors
# ```
#
# It prints an address; open it in a browser. Programs can ask it as well. Here the app is started on a free port,
# asked once, and ended:

# %%
from gradio_client import Client, handle_file
from lessons.own_data import served

with served("app", "--weights", str(weights)) as address:
    client = Client(address, verbose=False)
    reply = client.predict(image=handle_file(str(picture)), weights=weights.stem, api_name="/predict")
print(
    f"{len(reply['instances'])} instances, {reply['mean_macs'] or 0:,.0f} MACs each; sizes",
    [one["mask_size"] for one in reply["instances"]],
)

# %% [markdown]
# The app says what Python says, because both go through the same predictor:

# %%
print(prediction.mask_size.tolist())
assert [one["mask_size"] for one in reply["instances"]] == prediction.mask_size.tolist()

# %% [markdown]
# ## Exercises
#
# **1.** Write an annotation file in which every category is called `thing`, and see what `data check` thinks of it.
# Is that an error or a warning?

# %% tags=["solution"] jupyter={"source_hidden": true}
same = json.loads(json.dumps(coco))
for category in same["categories"]:
    category["name"] = "thing"
doubtful = check_data(same)
assert doubtful["finding_counts"]["duplicate_class_name"] == len(coco["categories"]) - 1
assert doubtful["errors"] == 0 and doubtful["usable"]
print(doubtful["findings"][0])

# %% [markdown]
# **2.** Which of your classes needs the finest masks, judged by the boundary IoU that a 14×14 mask keeps? Take it
# from `summary`, and check it against the first words of `analyze`.

# %% tags=["solution"] jupyter={"source_hidden": true}
from dynamask.evaluation.ideal_masks import by_loss

neediest = by_loss(summary)[0]
worst = min(summary["classes"].values(), key=lambda entry: entry["boundary_iou"]["14"])
assert summary["classes"][neediest] == worst
print(neediest, worst["boundary_iou"])

# %% [markdown]
# **3.** Train the switch alone, from the weights of the run: `--freeze all-but-switch`. Prove that the boxes of a
# picture are the same before and after, to the last bit.

# %% tags=["solution"] jupyter={"source_hidden": true}
import torch

alone = ["--data", mine, "--holdout", 4, "--model", "dynamask_nanodet_plus_m_1.5x"]
alone += ["--min-sizes", fast(64, 256), "--test-min-size", fast(64, 256)]
alone += ["--init", weights, "--freeze", "all-but-switch", "--warm-start", 0, "--iterations", fast(1, 30)]
alone += ["--batch-size", fast(1, 4), "--lr", 1e-3, "--warmup", 1, "--ema-decay", 0, "--mask-rois", fast(1, 4)]
answer = terminal("train", *alone, "--out", work / "switch")
assert answer.code == 0, answer
other = load(work / "switch" / "last.safetensors")(picture, all_sizes=True)
assert torch.equal(other.boxes, prediction.boxes) and torch.equal(other.scores, prediction.scores)
assert all(torch.equal(other.mask_at(i, 28), prediction.mask_at(i, 28)) for i in range(len(other)))
print("sizes before", prediction.mask_size.tolist(), "and after", other.mask_size.tolist())

# %% [markdown]
# **4.** What happens if you freeze the detector in the first run, the one from `things`? Predict the message, then read
# it.

# %% tags=["solution"] jupyter={"source_hidden": true}
answer = terminal("train", *flags, "--freeze", "detector", "--out", work / "frozen")
assert answer.code == 2 and "has no classes" in answer.text and not list(work.glob("frozen/*.safetensors"))
print(answer.text)
terminal.close()
folder.cleanup()

# %% [markdown]
# ## Recap
#
# - `data check` finds everything that is broken; the other commands stop at the first mistake with one line.
# - `analyze` says which classes need fine masks, before any training.
# - `things` are a start for any classes; `--init` and `--freeze` say where to begin and what may move.
# - A split by a hash of the image id stays the same in every command. Judge on what was kept back, at equal cost.
# - The app takes any weights: `python -m app --weights …`.
