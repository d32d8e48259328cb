"""The bundled weights are found by name, and what is wrong with them is said."""

import hashlib
import json

import pytest

from dynamask.models import weights
from dynamask.structures import DynaMaskError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "checkpoint_dir", lambda: tmp_path)
    return tmp_path


def test_shipped_weights_are_there_and_whole():
    entries = weights.list_bundled()
    assert "people" in entries
    for name, entry in entries.items():
        assert hashlib.sha256(weights.bundled_path(name).read_bytes()).hexdigest() == entry["sha256"]


def test_unknown_name_lists_the_known(folder):
    (folder / "manifest.json").write_text(json.dumps({"people": {"file": "people.safetensors"}}))
    with pytest.raises(DynaMaskError, match="dogs.*people"):
        weights.bundled_path("dogs")


def test_missing_file_is_said(folder):
    (folder / "manifest.json").write_text(json.dumps({"people": {"file": "people.safetensors"}}))
    with pytest.raises(DynaMaskError, match=r"people\.safetensors.*missing"):
        weights.bundled_path("people")
    (folder / "people.safetensors").write_bytes(b"x")
    assert weights.bundled_path("people") == folder / "people.safetensors"


@pytest.mark.parametrize("text", ["{", "[]", '{"people": 1}', '{"people": {}}'])
def test_broken_manifest_is_said(folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(DynaMaskError, match="manifest"):
        weights.list_bundled()


def test_no_manifest_means_no_weights(folder):
    assert weights.list_bundled() == {}
