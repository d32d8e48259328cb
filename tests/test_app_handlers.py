"""The app's handlers and its command line, without Gradio and without a model."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from app_fakes import MACS, FakePredictor
from PIL import Image

from app.__main__ import main
from app.handlers import EXAMPLES_DIR, LOWEST_SCORE, Explorer, encode_masks, find_examples, jpeg_url
from dynamask.structures import MASK_SIZES, DynaMaskError
from dynamask.viz.overlay import SIZE_COLOURS

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "uploads" / "photo.png"
    path.parent.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (120, 200, 3), dtype=np.uint8)).save(path)
    return path


def test_view_holds_every_size_of_every_instance(picture):
    predictor = FakePredictor(count=3)
    view = json.loads(Explorer(predictor, []).analyse(picture, "a title"))
    assert predictor.calls == [{"shape": (120, 200, 3), "all_sizes": True, "score": LOWEST_SCORE}]
    assert view["size"] == view["view"] == [200, 120]
    assert view["macs"] == list(MACS) and view["switch_macs"] == 500 and view["image_macs"] == 3000
    assert [style["size"] for style in view["styles"]] == list(MASK_SIZES)
    assert [style["colour"] for style in view["styles"]] == [SIZE_COLOURS[size] for size in MASK_SIZES]
    assert view["timings"] == {"detect": 210.5, "mask_branch": 43.21}
    prediction = FakePredictor(count=3)(np.zeros((120, 200, 3), np.uint8))
    expected = zip(prediction.boxes.tolist(), prediction.switch_probs.tolist())
    for one, (box, probs) in zip(view["instances"], expected, strict=True):
        assert one["label"] == "person" and one["box"] == box and one["probs"] == probs


def test_masks_survive_the_way_to_the_browser():
    prediction = FakePredictor(count=2)(np.zeros((60, 80, 3), np.uint8))
    data = np.frombuffer(zlib.decompress(base64.b64decode(encode_masks(prediction))), np.uint8)
    assert len(data) == 2 * sum(size * size for size in MASK_SIZES)
    offset = 0
    for index in range(2):
        for size in MASK_SIZES:
            grid = data[offset:offset + size * size].reshape(size, size) / 255
            offset += size * size
            assert np.abs(grid - prediction.mask_probs_at(index, size).numpy()).max() <= 0.5 / 255 + 1e-6


def test_a_picture_without_objects_gives_an_empty_view(picture):
    view = json.loads(Explorer(FakePredictor(count=0), []).analyse(picture))
    assert view["instances"] == [] and zlib.decompress(base64.b64decode(view["masks"])) == b""


def test_text_from_outside_is_inert(picture):
    explorer = Explorer(FakePredictor(class_names=("__background__", "</script><script>alert(1)")), [])
    text = explorer.analyse(picture, title="<img src=x onerror=alert(1)>")
    assert "<" not in text
    view = json.loads(text)
    assert view["instances"][0]["label"] == "</script><script>alert(1)" and view["title"].startswith("<img")


def test_large_pictures_are_shrunk_for_the_browser_only():
    url, size = jpeg_url(np.zeros((1000, 3200, 3), np.uint8), 1600)
    assert size == (1600, 500) and url.startswith("data:image/jpeg;base64,")
    assert jpeg_url(np.zeros((1, 1, 3), np.uint8), 1600)[1] == (1, 1)
    assert jpeg_url(np.zeros((1, 4000, 3), np.uint8), 1600)[1] == (1600, 1)


def test_examples_are_analysed_once_and_only_if_they_exist(picture):
    predictor = FakePredictor()
    explorer = Explorer(predictor, find_examples(picture.parent))
    assert explorer.examples == []  # no .jpg there
    Image.open(picture).save(picture.with_suffix(".jpg"))
    explorer = Explorer(predictor, find_examples(picture.parent))
    assert explorer.example(0) == explorer.example(0) == explorer.first_view()
    assert len(predictor.calls) == 1
    for index in (-1, 1, "0", None, 0.0):
        with pytest.raises(DynaMaskError, match="no such example"):
            explorer.example(index)


def test_an_upload_is_read_from_the_upload_folder_only(picture, tmp_path):
    explorer = Explorer(FakePredictor(), [])
    view = json.loads(explorer.uploaded(str(picture), "x" * 500, picture.parent))
    assert view["title"] == "x" * 120
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture.read_bytes())
    for path in (secret, picture.parent / ".." / "secret.png", picture.parent, picture.parent / "absent.png", None):
        with pytest.raises(DynaMaskError, match="not uploaded here"):
            explorer.uploaded(str(path), "a", picture.parent)


def test_an_upload_that_is_no_picture_is_refused(picture):
    predictor = FakePredictor()
    truncated = picture.with_name("half.png")
    truncated.write_bytes(picture.read_bytes()[:200])
    text = picture.with_name("note.png")
    text.write_text("not a picture")
    for path in (truncated, text):
        with pytest.raises(DynaMaskError):
            Explorer(predictor, []).uploaded(str(path), path.name, picture.parent)
    assert predictor.calls == []


def test_examples_follow_the_attribution_table(tmp_path):
    for name in ("a.jpg", "b.jpg", "c_d.jpg"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "ATTRIBUTION.csv").write_text(
        "file_name,title,author,license,source\nb.jpg,Bee,Ann,CC BY 2.0,https://example.org\nmissing.jpg,,,,\na.jpg,,,,\n")
    examples = find_examples(tmp_path)
    assert [example.path.name for example in examples] == ["b.jpg", "a.jpg", "c_d.jpg"]
    assert examples[0].title == "Bee" and examples[0].credit == "Ann · CC BY 2.0 · https://example.org"
    assert examples[2].title == "c d" and examples[2].credit == ""


def test_every_bundled_example_says_where_it_comes_from():
    examples = find_examples()
    assert examples and {example.path for example in examples} == set(EXAMPLES_DIR.glob("*.jpg"))
    assert all(example.credit for example in examples)
    assert len(json.loads(Explorer(FakePredictor(), examples).thumbnails())) == len(examples)


@pytest.mark.parametrize("arguments", [["--port", "0"], ["--port", "x"], ["--auth", "user"], ["--unknown"]])
def test_a_wrong_flag_is_one_line_and_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.out == ""
    assert captured.err.startswith("dynamask: error: ") and captured.err.count("\n") == 1


def test_missing_weights_are_one_line_and_exit_code_2(tmp_path, capsys):
    pytest.importorskip("dynamask.predictor")
    with pytest.raises(SystemExit) as stop:
        main(["--weights", str(tmp_path / "absent.safetensors")])
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.out == ""
    assert captured.err.startswith("dynamask: error: ") and captured.err.count("\n") == 1
    assert "absent.safetensors" in captured.err


def test_help_does_not_wait_for_the_libraries():
    code = "import sys, app.__main__ as m\ntry: m.main(['-h'])\nexcept SystemExit: pass\n" \
           "print({'torch', 'gradio'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "--weights" in done.stdout and done.stdout.rstrip().endswith("set()")
