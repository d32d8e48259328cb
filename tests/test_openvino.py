"""OpenVINO as a back end: equal masks, stages only where they are needed, the cache, and errors."""

import copy
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command_line import refusal
from helpers.small_models import TINY_SOLO, tiny_model, tiny_nanodet

import dynamask
from dynamask import DynaMaskError
from dynamask.models import openvino
from dynamask.models.build import build_solo
from dynamask.models.masks import region_fpn
from dynamask.models.openvino import CompiledFunction, accelerate
from dynamask.predict import predictor_of
from dynamask.structures import MASK_SIZES

needs_openvino = pytest.mark.skipif(not openvino.is_installed(), reason="OpenVINO is not installed")
PHOTOGRAPH = Path(__file__).parents[1] / "app" / "examples" / "000000039551.jpg"


@pytest.fixture(autouse=True, scope="module")
def cache_home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setattr(region_fpn, "COMPILED_CHANNELS", 1)
        yield folder


def lively(model):
    """The model with deformed convolutions and masks that differ from cell to cell."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "offsets.weight" in name or "mask_predictors" in name:
                parameter.normal_(std=0.3)
    return model.eval()


@pytest.fixture(scope="module")
def models():
    """A model, and a copy of it that OpenVINO runs."""
    model = lively(tiny_model())
    fast = copy.deepcopy(model)
    accelerate(fast)
    return model, fast


def picture(height: int = 64, width: int = 80, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def boxes(count: int) -> list[list[float]]:
    return [[2.0 * i, 3.0, 2.0 * i + 30.0, 40.0 + i] for i in range(count)]


def largest_difference(one, other) -> float:
    assert len(one) == len(other) > 0
    sizes = [MASK_SIZES.index(size) for size in MASK_SIZES]
    pairs = [(one.regions.probs(i, k), other.regions.probs(i, k)) for i in range(len(one)) for k in sizes]
    return max(float((a - b).abs().max()) for a, b in pairs)


def stage_calls(model, monkeypatch) -> list[tuple[str, int]]:
    """Record of the functions that OpenVINO runs: name of the owner's class, and number of rows."""
    calls, run = [], CompiledFunction._run
    stages = {id(vars(stage)["forward"]): f"stage {i}" for i, stage in enumerate(model.mask_branch.head.stages)}

    def recorded(self, leaves):
        if id(self) in stages:
            calls.append((stages[id(self)], len(leaves[0])))
        return run(self, leaves)

    monkeypatch.setattr(CompiledFunction, "_run", recorded)
    return calls


@needs_openvino
def test_masks_of_a_photograph_equal_those_of_torch():
    found = [dynamask.load("things", backend=backend)(PHOTOGRAPH, all_sizes=True) for backend in ("torch", "openvino")]
    assert torch.equal(found[0].labels, found[1].labels) and torch.equal(found[0].mask_size, found[1].mask_size)
    torch.testing.assert_close(found[0].boxes, found[1].boxes, atol=1e-2, rtol=0)
    torch.testing.assert_close(found[0].scores, found[1].scores, atol=1e-3, rtol=0)
    assert largest_difference(*found) < 1e-3


@needs_openvino
@pytest.mark.parametrize("size", [(64, 80), (100, 60)])
def test_pictures_of_any_size_give_the_same_masks(models, size):
    found = [predictor_of(model)(picture(*size), score=0.0, all_sizes=True) for model in models]
    torch.testing.assert_close(found[0].boxes, found[1].boxes, atol=1e-2, rtol=0)
    assert largest_difference(*found) < 1e-3
    assert float((found[0].regions.probs(0, 3) - 0.5).abs().max()) > 0.05


@needs_openvino
def test_a_batch_of_pictures_gives_the_same_masks(models):
    images = [torch.from_numpy(picture(*size)).permute(2, 0, 1) / 255 for size in [(64, 80), (80, 64)]]
    for one, other in zip(*(model(images) for model in models)):
        torch.testing.assert_close(one["masks"], other["masks"], atol=1e-3, rtol=0)


@needs_openvino
@pytest.mark.parametrize("count", [0, 1, openvino.REGIONS_AT_ONCE, openvino.REGIONS_AT_ONCE + 3])
def test_any_number_of_regions_gives_the_same_masks(models, count):
    found = [predictor_of(model)(picture(), boxes=boxes(count), labels=[1] * count, all_sizes=True) for model in models]
    assert len(found[1]) == count and found[0].masks.shape == found[1].masks.shape
    if count:
        assert largest_difference(*found) < 1e-3


@needs_openvino
@pytest.mark.parametrize("refine", [(1.0, 0.4, 0.2), (0.9, 0.05, 0.6)])
def test_refined_masks_equal_those_of_torch(refine):
    model = lively(tiny_model(refine=refine))
    fast = copy.deepcopy(model)
    accelerate(fast)
    for count in (1, 3, openvino.REGIONS_AT_ONCE + 3):
        choice = {"boxes": boxes(count), "labels": [1] * count, "all_sizes": True}
        one, other = (predictor_of(m)(picture(), **choice) for m in (model, fast))
        for k in range(len(MASK_SIZES)):  # the list may differ where two cells are equally near to the outline
            pairs = [(one.regions.probs(i, k), other.regions.probs(i, k)) for i in range(count)]
            assert max(float(((a - b).abs() > 1e-3).float().mean()) for a, b in pairs) < 2e-3


@needs_openvino
def test_a_mask_does_not_depend_on_the_other_regions(models):
    predictor = predictor_of(models[1])
    many = predictor(picture(), boxes=boxes(9), labels=[1] * 9, all_sizes=True)
    one = predictor(picture(), boxes=boxes(9)[5:6], labels=[1], all_sizes=True)
    for k in range(len(MASK_SIZES)):
        torch.testing.assert_close(many.regions.probs(5, k), one.regions.probs(0, k), atol=1e-5, rtol=0)


@needs_openvino
def test_stages_run_only_for_the_regions_that_need_them(models, monkeypatch):
    calls = stage_calls(models[1], monkeypatch)
    predictor = predictor_of(models[1])
    prediction = predictor(picture(), policy="fixed:14", boxes=boxes(3), labels=[1, 1, 1])
    assert calls == []
    prediction.regions.ensure(torch.tensor([0, 2, 0]))
    assert calls == [("stage 0", 1), ("stage 1", 1)]
    predictor.select(prediction, policy="fixed:56")
    assert calls[2:] == [("stage 0", 2), ("stage 1", 2)]


@needs_openvino
@pytest.mark.parametrize("kind", ["nanodet", "fcn", "one-stage"])
def test_other_models_give_the_same_masks(kind):
    if kind == "one-stage":
        torch.manual_seed(0)
        model = build_solo(TINY_SOLO).eval()
        images = [torch.from_numpy(picture()).permute(2, 0, 1) / 255]
        fast = copy.deepcopy(model)
        accelerate(fast)
        with torch.no_grad():
            grids = [m.encode(images)[0].grids for m in (model, fast)]
        for one, other in zip(*grids, strict=True):
            torch.testing.assert_close(one.category, other.category, atol=1e-4, rtol=0)
            torch.testing.assert_close(one.vectors, other.vectors, atol=1e-4, rtol=0)
        return
    model = tiny_nanodet() if kind == "nanodet" else tiny_model(mask_branch="fcn:28")
    fast = copy.deepcopy(lively(model))
    accelerate(fast)
    one, other = (predictor_of(m)(picture(), boxes=boxes(2), labels=[1, 2]) for m in (model, fast))
    for row in range(2):
        k = MASK_SIZES.index(int(one.mask_size[row]))
        torch.testing.assert_close(one.regions.probs(row, k), other.regions.probs(row, k), atol=1e-3, rtol=0)


@needs_openvino
def test_training_and_copies_compute_in_torch(models, monkeypatch):
    def refuse(self, leaves):
        raise AssertionError("OpenVINO ran")

    monkeypatch.setattr(CompiledFunction, "_run", refuse)
    switch = models[1].mask_branch.switch
    feature = torch.rand(2, 16, 14, 14)
    switch(feature).sum().backward()
    assert switch.fc[0].weight.grad is not None
    switch.zero_grad()
    with torch.no_grad():
        torch.testing.assert_close(copy.deepcopy(switch)(feature), models[0].mask_branch.switch(feature))
        with pytest.raises(AssertionError, match="OpenVINO ran"):
            switch(feature)


@needs_openvino
def test_threads_can_share_a_predictor(models):
    predictor = predictor_of(models[1])
    pictures = [picture(seed=seed) for seed in range(4)]
    expected = [predictor(each, boxes=boxes(2), labels=[1, 1], all_sizes=True) for each in pictures]
    found = [None] * 4

    def run(index):
        found[index] = predictor(pictures[index], boxes=boxes(2), labels=[1, 1], all_sizes=True)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(largest_difference(*pair) for pair in zip(found, expected)) < 1e-5


@needs_openvino
def test_compiled_models_are_read_from_the_cache(models, monkeypatch):
    convert = openvino._converted

    def refuse(*arguments):
        raise AssertionError("converted again")

    monkeypatch.setattr(openvino, "_converted", refuse)
    again = copy.deepcopy(models[0])
    accelerate(again)
    accelerate(again)  # nothing is compiled from what was compiled before
    found = [predictor_of(m)(picture(), boxes=boxes(2), labels=[1, 1], all_sizes=True) for m in (models[0], again)]
    assert largest_difference(*found) < 1e-3
    other = copy.deepcopy(models[0])
    with torch.no_grad():
        other.mask_branch.switch.fc[2].bias += 1
    with pytest.raises(DynaMaskError, match="cannot convert .*converted again"):
        accelerate(other)
    monkeypatch.setattr(openvino, "_converted", convert)
    for path in openvino._model_folder(again).glob("*.bin"):
        path.write_bytes(path.read_bytes()[:100])
    accelerate(again)
    assert min(path.stat().st_size for path in openvino._model_folder(again).glob("*.bin")) > 1000


@needs_openvino
def test_without_a_writable_cache_models_are_compiled_each_time(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    model = tiny_model()
    assert openvino._model_folder(model) is None
    monkeypatch.setattr(type(model), "tensor_functions", lambda self: self.mask_branch.head.tensor_functions())
    accelerate(model.eval())
    assert isinstance(vars(model.mask_branch.head.base)["forward"], CompiledFunction)


@needs_openvino
def test_only_the_last_used_models_stay_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(openvino, "KEPT_MODELS", 2)
    for age, name in enumerate("abc"):
        (tmp_path / name).mkdir()
        openvino.os.utime(tmp_path / name, (1000 - age, 1000 - age))
    openvino._remove_unused(tmp_path / "c")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c"]


def test_a_reader_never_sees_half_a_file(tmp_path):
    path, contents = tmp_path / "part.bin", [bytes([i]) * 200_000 for i in range(2)]
    openvino._store(path, contents[0])
    threads = [threading.Thread(target=lambda c=c: [openvino._store(path, c) for _ in range(20)]) for c in contents]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert path.read_bytes() in contents
    assert [each.name for each in tmp_path.iterdir()] == ["part.bin"]
    openvino._store(tmp_path / "missing" / "part.bin", b"")  # no error


def test_without_openvino_one_sentence_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(openvino, "is_installed", lambda: False)
    with pytest.raises(DynaMaskError, match=r'not installed; run pip install "dynamask\[openvino\]"'):
        dynamask.load("shapes", backend="openvino")
    words = ("predict", "--weights", "shapes", "--image", PHOTOGRAPH, "--out", tmp_path / "out")
    error = refusal(capsys, *words, "--backend", "openvino")
    assert error == 'dynamask: error: the back end openvino is not installed; run pip install "dynamask[openvino]"'


def test_unknown_back_ends_and_other_devices_are_refused(monkeypatch):
    with pytest.raises(DynaMaskError, match="back end 'tpu' is unknown; choose one of torch, openvino"):
        dynamask.load("shapes", backend="tpu")
    monkeypatch.setattr(openvino, "is_installed", lambda: True)
    with pytest.raises(DynaMaskError, match="computes on the CPU, not on meta; omit the device"):
        accelerate(tiny_model().to("meta"))
