"""The pictures that ``--image`` names: what is found, how its results are called, and which image ids they get."""

import json
import os
from pathlib import Path

import pytest

from dynamask.cli.image_sources import find_pictures
from dynamask.structures import DynaMaskError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of (empty) files, as the working directory."""
    for name in ("a/1.png", "b/1.png", "b/2.JPG", "b/.hidden.png", "b/notes.txt", "c/x.png", "c/x.jpg", "out/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        (["b/2.JPG"], ["2"]),
        (["none/x.tar.gz", "b/notes.txt"], ["x.tar", "notes"]),
        (["b"], ["1", "2"]),
        (["."], ["a/1", "b/1", "b/2", "c/x.jpg", "c/x.png"]),
        (["?/1.png"], ["a/1", "b/1"]),
        (["**/*.JPG"], ["b/2"]),
        (["b/*.JPG", "b", "./b/2.JPG"], ["2", "1"]),
        (["a/1.png", "b/1.png", "b/2.JPG"], ["a/1", "b/1", "2"]),
        (["c/x.png", "c/x.jpg"], ["x.png", "x.jpg"]),
    ],
)
def test_names_of_results(folder, sources, names):
    found = find_pictures(sources, Path("out"))
    assert [one.name for one in found] == names
    assert [one.image_id for one in found] == list(range(1, len(names) + 1))


def test_a_list_names_pictures_from_the_working_directory_or_beside_it(folder):
    (folder / "b/list.txt").write_bytes("\ufeff../a/1.png\r\n\r\nb/*.JPG\n2.JPG\n".encode())
    found = find_pictures(["@b/list.txt"], folder / "out")
    assert [os.path.relpath(one.path, folder) for one in found] == ["a/1.png", "b/2.JPG"]


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (["out"], "holds no picture"),
        (["x*.png"], "no file fits the pattern"),
        (["@none.txt"], "cannot be read"),
        (["@b/1.png"], "is empty"),
        (["out/1.png"], "results would overwrite out/1.png"),
        (["a/1.png", "a/../c/x.png", "c/../a/1.gif", "b/1.png", "a"], None),
    ],
)
def test_what_names_no_picture_is_refused(folder, sources, message):
    if message is None:
        assert [one.name for one in find_pictures(sources, folder / "out")] == ["a/1.png", "x", "a/1.gif", "b/1.png"]
        return
    with pytest.raises(DynaMaskError, match=message):
        find_pictures(sources, folder / "out")


def test_image_ids_are_found_by_the_end_of_the_path(folder):
    listed = {"a/1.png": 11, "train\\b\\1.png": 12, "2.JPG": 13, "train/c/x.png": 14}
    content = {"images": [{"id": number, "file_name": name} for name, number in listed.items()]}
    ids = folder / "ids.json"
    ids.write_text(json.dumps(content))
    found = find_pictures(["a/1.png", "b/2.JPG", "c/x.png"], folder / "out", ids)
    assert [one.image_id for one in found] == [11, 13, 14]
    with pytest.raises(DynaMaskError, match="no image id for 1 of 2 pictures, the first is c/x.jpg"):
        find_pictures(["c"], folder / "out", ids)
    wrong = {"{": "cannot be read", "[]": "lists no images", json.dumps({"images": [{"id": 1}]}): "no file_name"}
    for text, message in wrong.items():
        ids.write_text(text)
        with pytest.raises(DynaMaskError, match=message):
            find_pictures(["c"], folder / "out", ids)


def test_a_pipe_is_no_list(folder):
    os.mkfifo("pipe")
    with pytest.raises(DynaMaskError, match="no text file"):
        find_pictures(["@pipe"], folder / "out")
    with pytest.raises(DynaMaskError, match="no regular file"):
        find_pictures(["a"], folder / "out", folder / "pipe")
