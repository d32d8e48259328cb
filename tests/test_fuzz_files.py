"""Property-based tests of the readers of files: COCO JSON, results, masks, weights and training states.

The normal run checks a few fixed inputs; ``pytest -m fuzz`` checks new ones, for DYNAMASK_FUZZ_SECONDS seconds each.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import io
import json
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("hypothesis", reason="the inputs are made by hypothesis")

from helpers.coco_files import rectangle, uncompressed
from helpers.fuzzing import Target, result_or_sentence, run_command, run_examples, run_for
from helpers.mutations import damaged, hostile_values, json_files, mutated
from helpers.runs import Toy, toy_run
from helpers.small_models import finding_solo, tiny_model
from hypothesis import strategies as st
from PIL import Image

from dynamask.config import BaseModelConfig
from dynamask.data.coco_format import read_coco
from dynamask.data.segmentation import segmentation_to_rle
from dynamask.engine.checkpoint import run_file
from dynamask.models.weights import load_model, read_header, save_model, verify_file
from dynamask.ops.rle import decode_rle, encode_rle, rle_area, rle_box

SIZE = (24, 32)
"""(height, width) of the pictures in pixels."""


@functools.cache
def folder() -> Path:
    """A folder with a picture, removed at the end of the process."""
    kept = tempfile.TemporaryDirectory(prefix="dynamask-fuzz-")
    folder.kept = kept
    path = Path(kept.name)
    (path / "images").mkdir()
    Image.new("RGB", SIZE[::-1]).save(path / "images" / "1.png")
    return path


def _mask() -> np.ndarray:
    mask = np.zeros(SIZE, dtype=np.uint8)
    mask[3:14, 5:20] = 1
    return mask


# ---- COCO files ----

POLYGON = [2.0, 2.0, 12.5, 2.0, 12.5, 12.0, 2.0, 12.0]
ANNOTATIONS = [
    {"id": 1, "image_id": 1, "category_id": 5, "iscrowd": 0, "area": 105.0, "bbox": [2, 2, 10.5, 10]}
    | {"segmentation": [POLYGON]},
    {"id": 2, "image_id": 2, "category_id": 7, "iscrowd": 0, "area": 165, **rectangle(SIZE, 5, 3, 15, 11)},
    {"id": 3, "image_id": 2, "category_id": 5, "iscrowd": 1, "area": 165, "bbox": [5, 3, 15, 11]}
    | {"segmentation": uncompressed(_mask())},
]
IMAGES = [{"id": number, "file_name": f"{number}.png", "width": SIZE[1], "height": SIZE[0]} for number in (1, 2)]
CATEGORIES = [{"id": 5, "name": "cat", "supercategory": "animal"}, {"id": 7, "name": "dog"}]
COCO = {"info": {"year": 2026}, "licenses": [], "images": IMAGES, "annotations": ANNOTATIONS, "categories": CATEGORIES}
LVIS = {
    "images": [{**image, "neg_category_ids": [7], "not_exhaustive_category_ids": []} for image in IMAGES],
    "annotations": ANNOTATIONS[:2],
    "categories": [{**category, "frequency": "c"} for category in CATEGORIES],
}
SMALL = {"images": IMAGES[:1], "annotations": ANNOTATIONS[:1], "categories": CATEGORIES[:1]}


def check_coco(case: tuple[bytes, str]) -> None:
    """The reader and the commands on an annotation file."""
    content, command = case
    path = folder() / "annotations.json"
    path.write_bytes(content)
    if command == "read":
        read = result_or_sentence(read_coco, path)
        if read is not None:
            json.dumps(read.coco, allow_nan=True)
            assert len(read.rles) == len(read.coco["annotations"])
            assert all(decode_rle(rle).any() for rle in read.rles)
        return
    words = {
        "check": ["data", "check", "--images", str(folder() / "images"), "--json", str(folder() / "out.json")],
        "analyze": ["analyze", "--json", str(folder() / "out.json")],
        "subset": ["data", "subset", "--where", "file_name=1", "--out", str(folder() / "subset.json")],
    }[command]
    run_command(*words, "--annotations", str(path), codes=(0, 1, 2) if command == "check" else (0, 2))


COCO_FILES = st.tuples(
    json_files((COCO, LVIS, SMALL, SMALL)), st.sampled_from(("check", "check", "check", "read", "analyze", "subset"))
)

# ---- results files ----

RESULTS = [
    {"image_id": 1, "category_id": 5, "score": 0.9, "bbox": [2, 2, 10.5, 10], "segmentation": [POLYGON]},
    {"image_id": 2, "category_id": 7, "score": 0.5, "segmentation": encode_rle(_mask())},
]


def check_results(content: bytes) -> None:
    """The evaluation of a results file."""
    path, truth = folder() / "results.json", folder() / "truth.json"
    truth.write_text(json.dumps(COCO))
    path.write_bytes(content)
    run_command("evaluate", "--predictions", str(path), "--annotations", str(truth), "--json", "-")


# ---- masks ----

MASKS = (encode_rle(_mask()), uncompressed(_mask()), [POLYGON], [POLYGON, POLYGON[:6]])
TEXTS = st.binary(max_size=30) | st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=30)


def check_mask(segmentation: Any) -> None:
    """A segmentation as a mask of a picture."""
    rle = result_or_sentence(segmentation_to_rle, segmentation, SIZE)
    if rle is not None:
        mask = decode_rle(rle)
        assert mask.shape == SIZE and mask.sum() == rle_area(rle)
        assert (decode_rle(encode_rle(mask)) == mask).all()
        columns, rows = mask.any(0).nonzero()[0], mask.any(1).nonzero()[0]
        if len(rows):
            extent = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
            assert rle_box(rle) == extent


SEGMENTATIONS = st.one_of(
    mutated(MASKS),
    mutated(MASKS, 1),
    TEXTS.map(lambda counts: {"size": list(SIZE), "counts": counts}),
    st.lists(st.integers(-2, 800), max_size=6).map(lambda counts: {"size": list(SIZE), "counts": counts}),
    st.lists(st.lists(st.floats(-400, 400), max_size=12), max_size=4),
    hostile_values(),
)

# ---- weights files ----


@functools.cache
def weights(one_stage: bool = False) -> tuple[dict[str, str], bytes]:
    """The texts in the header of a weights file, and the whole file."""
    path = folder() / "sound.safetensors"
    save_model(finding_solo() if one_stage else tiny_model(), path, training={"seed": 0, "images_seen": 8})
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _with_header(header: Any, one_stage: bool) -> bytes:
    """A weights file with another header."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + weights(one_stage)[1]


def check_weights(case: tuple[bytes, str]) -> None:
    """A weights file: its header, the model that is built from it, and the report of ``weights verify``."""
    content, how = case
    path = folder() / "fuzzed.safetensors"
    path.write_bytes(content)
    if how == "header":
        header = result_or_sentence(read_header, path)
        if header is not None:
            result_or_sentence(BaseModelConfig.from_dict, header["config"])
    elif how == "load":
        result_or_sentence(load_model, path)
    else:
        problems = result_or_sentence(verify_file, path)
        assert problems is None or all(isinstance(problem, str) for problem in problems)


@st.composite
def weights_files(draw: st.DrawFn) -> bytes:
    """Weights whose configuration, other texts or table of tensors are changed, or with damaged bytes."""
    one_stage = draw(st.booleans())
    header = copy.deepcopy(weights(one_stage)[0])
    stored, what = (
        header["__metadata__"],
        draw(st.sampled_from(("config", "config", "config", "texts", "tensors", "bytes"))),
    )
    if what == "config":
        stored["config"] = json.dumps(draw(mutated([json.loads(stored["config"])])))
    elif what == "texts":
        header["__metadata__"] = draw(mutated([stored]))
    elif what == "tensors":
        header |= draw(mutated([dict(list(header.items())[1:6])]).filter(lambda table: isinstance(table, dict)))
    data = _with_header(header, one_stage)
    return draw(damaged(st.just(data), header=600)) if what == "bytes" else data


WEIGHTS_FILES = st.tuples(weights_files(), st.sampled_from(("header", "header", "header", "load", "load", "verify")))

# ---- training states ----


@functools.cache
def state() -> dict[str, Any]:
    """The state of a training of two numbers after a step."""
    run = toy_run(folder() / "state", iterations=4)
    run.settings = {"train": dataclasses.asdict(run.config), "model": {"name": "toy", "sizes": [14, 28]}}
    run.step = 1
    loss = sum(run.model([], []).values())
    loss.backward()
    run.optimizer.step()
    run.save()
    return torch.load(run_file(run.out, 1), weights_only=True)


def _saved(value: Any) -> bytes:
    """A value as ``torch.save`` writes it."""
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def check_state(content: bytes) -> None:
    """A training that resumes from a state, which must be usable if it is accepted."""
    run = _resuming()
    for old in run.out.glob("run-*"):
        old.unlink()
    run_file(run.out, 1).write_bytes(content)
    before = {name: value.clone() for name, value in Toy().state_dict().items()}
    run.model.load_state_dict(before)
    run.step = 0
    accepted = result_or_sentence(lambda: run.resume() or True)
    if accepted:
        assert isinstance(run.step, int) and 0 <= run.step <= run.config.iterations
        run.losses([], [])["loss_mask"].backward()
        run.optimizer.step()
        run.optimizer.zero_grad()
        assert json.dumps(run.settings)


@functools.cache
def _resuming() -> Any:
    run = toy_run(folder() / "resuming", iterations=4)
    run.settings = state()["settings"]
    return run


STATES = st.one_of(
    st.deferred(lambda: mutated([state()])).map(_saved),
    st.deferred(lambda: mutated([state()], 1)).map(_saved),
    st.deferred(lambda: damaged(st.just(_saved(state())))),
    hostile_values().map(_saved),
    st.binary(max_size=40),
)

TARGETS = {
    "coco": Target(COCO_FILES, check_coco, 50),
    "results": Target(json_files((RESULTS,)), check_results, 40),
    "masks": Target(SEGMENTATIONS, check_mask, 150),
    "weights": Target(WEIGHTS_FILES, check_weights, 30),
    "states": Target(STATES, check_state, 50),
}


@pytest.mark.parametrize("name", TARGETS)
def test_inputs_give_a_result_or_a_sentence(name):
    run_examples(TARGETS[name])


@pytest.mark.fuzz
@pytest.mark.parametrize("name", TARGETS)
def test_new_inputs_give_a_result_or_a_sentence(name):
    print(f"{name}: {run_for(TARGETS[name])} inputs")
