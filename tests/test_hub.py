"""Models as folders of the Hugging Face form: written, read, pushed and fetched, without a network."""

import json
import shutil

import huggingface_hub
import pytest
import torch
import yaml
from helpers.small_models import picture, tiny_model, tiny_solo
from huggingface_hub import ModelCard as HubCard

import dynamask
from dynamask.config import AggregationConfig
from dynamask.models import weights
from dynamask.models.dynamask import DynaMask
from dynamask.models.hub import ModelCard, find_weights, parse_hub_name
from dynamask.models.solo.model import SoloNet
from dynamask.models.weights import read_header, save_model
from dynamask.structures import DynaMaskError


@pytest.fixture(scope="module")
def model():
    return tiny_model().eval()


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return list(a) == list(b) and all(torch.equal(value, b[key]) for key, value in a.items())


def front_matter(text: str) -> dict:
    return yaml.safe_load(text.split("---")[1])


def test_a_saved_folder_is_the_model_again(model, tmp_path):
    folder = model.save_pretrained(tmp_path / "mine")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    again = DynaMask.from_pretrained(folder)
    assert equal(model, again) and again.config == model.config and not again.training
    assert json.loads((folder / "config.json").read_text()) == read_header(folder / "model.safetensors")["config"]
    found = dynamask.load(folder)(torch.full((64, 64, 3), 90, dtype=torch.uint8).numpy(), score=0.0)
    assert len(found) > 0
    with torch.no_grad():
        ours, theirs = model([picture()])[0], again([picture()])[0]
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_one_stage_model_is_saved_too(tmp_path):
    model = tiny_solo(AggregationConfig())
    folder = model.save_pretrained(tmp_path / "sodar")
    assert equal(model, SoloNet.from_pretrained(folder))
    assert "SOLOv2 with SODAR's aggregation" in (folder / "README.md").read_text(encoding="utf-8")


def test_the_card_holds_the_hubs_fields_and_the_scores(model, tmp_path):
    average_precision = {"bbox": {"AP": 0.25}, "segm": {"AP": 0.125}, "boundary": {"AP": None}}
    scores = {"learned": {**average_precision, "mean_macs_per_instance": 2.5e7}}
    card = ModelCard("apache-2.0", data="Trained on nothing.", scores=scores, measured_on="ten scenes")
    text = (model.save_pretrained(tmp_path / "mine", card) / "README.md").read_text(encoding="utf-8")
    fields = front_matter(text)
    assert (fields["license"], fields["pipeline_tag"]) == ("apache-2.0", "image-segmentation")
    metrics = fields["model-index"][0]["results"][0]["metrics"]
    assert {metric["type"]: metric["value"] for metric in metrics} == {"bbox_ap": 0.25, "segm_ap": 0.125}
    assert "| learned | 0.250 | 0.125 | – | 0.0250 |" in text and "Trained on nothing." in text
    assert len(HubCard(text).data.eval_results) == 2, "the hub's own reader understands it"
    text = (model.save_pretrained(tmp_path / "bare") / "README.md").read_text(encoding="utf-8")
    assert "model-index" not in front_matter(text) and "| policy" not in text
    assert front_matter(text)["license"] == "other" and 'dynamask.load("path/to/bare")' in text


def test_bundled_weights_know_their_card():
    card = ModelCard.of_bundled("shapes")
    assert card.scores["learned"]["segm"]["AP"] == pytest.approx(0.734, abs=1e-3)
    assert "no photograph" in card.licence_text and card.commands[0].startswith("dynamask train")
    with pytest.raises(DynaMaskError, match="no bundled weights are called 'dogs'"):
        ModelCard.of_bundled("dogs")


def test_names_are_found(model, tmp_path, monkeypatch):
    assert find_weights("shapes").name == "shapes.safetensors"
    monkeypatch.chdir(tmp_path)
    model.save_pretrained("shapes")
    assert find_weights("shapes").name == "shapes.safetensors"
    assert find_weights("./shapes").name == find_weights(tmp_path / "shapes").name == "model.safetensors"
    assert str(find_weights("a/b.safetensors")) == "a/b.safetensors"
    (tmp_path / "empty").mkdir()
    with pytest.raises(DynaMaskError, match="folder empty holds no model.safetensors"):
        find_weights("empty")
    with pytest.raises(DynaMaskError, match="no bundled weights are called 'owner/name'"):
        find_weights("owner/name")


def test_hub_names_are_parsed():
    assert parse_hub_name("hf://owner/name") == parse_hub_name("owner/name") == ("owner/name", None)
    assert parse_hub_name("hf://owner/na.me-2@v1/x") == ("owner/na.me-2", "v1/x")
    for wrong in ("name", "a/b/c", "owner/", "owner/name@", "own er/name"):
        with pytest.raises(DynaMaskError, match="is not a name on the hub; write owner/name"):
            parse_hub_name(wrong)


def test_fetching_asks_the_hub_once_and_for_three_files(model, tmp_path, monkeypatch):
    folder, asked = model.save_pretrained(tmp_path / "there"), []

    def fetch(repo, **options):
        asked.append((repo, options["revision"], options["local_files_only"]))
        assert sorted(options["allow_patterns"]) == ["README.md", "config.json", "model.safetensors"]
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert equal(model, DynaMask.from_pretrained("owner/name@main"))
    assert equal(model, DynaMask.from_pretrained("hf://owner/name", local_files_only=True))
    assert equal(model, dynamask.load("hf://owner/name").model)
    assert asked == [("owner/name", "main", False), ("owner/name", None, True), ("owner/name", None, False)]
    (folder / "model.safetensors").unlink()
    with pytest.raises(DynaMaskError, match="hf://owner/name holds no model.safetensors"):
        dynamask.load("hf://owner/name")


def test_without_a_network_one_sentence(monkeypatch, model):
    def fail(*_, **__):
        raise ConnectionError("Name or service\nnot known. More words")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(DynaMaskError, match=r"cannot be downloaded from the hub \(Name or service not known\)"):
        dynamask.load("hf://owner/name")
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", fail)
    with pytest.raises(DynaMaskError, match="owner/name cannot be pushed"):
        model.push_to_hub("owner/name")


def test_pushing_makes_the_repository_and_uploads_the_folder(model, tmp_path, monkeypatch):
    calls = []

    class Api:
        def __init__(self, token=None):
            self.token = token

        def create_repo(self, repo_id, private, exist_ok):
            calls.append(("create", self.token, repo_id, private, exist_ok))
            return f"https://hub.example/{repo_id}"

        def upload_folder(self, repo_id, folder_path, commit_message):
            calls.append(("upload", repo_id, commit_message))
            shutil.copytree(folder_path, tmp_path / "uploaded")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert model.push_to_hub("hf://owner/mine", private=True, token="secret") == "https://hub.example/owner/mine"
    assert calls == [("create", "secret", "owner/mine", True, True), ("upload", "owner/mine", "DynaMask weights")]
    assert equal(model, DynaMask.from_pretrained(tmp_path / "uploaded"))
    assert '"hf://owner/mine"' in (tmp_path / "uploaded" / "README.md").read_text(encoding="utf-8")
    with pytest.raises(DynaMaskError, match="'mine' is not a name on the hub"):
        model.push_to_hub("mine")


def test_folders_that_contradict_themselves_are_refused(model, tmp_path):
    folder = model.save_pretrained(tmp_path / "mine")
    save_model(tiny_model(score_threshold=0.25), folder / "model.safetensors")
    with pytest.raises(DynaMaskError, match="describe different models"):
        DynaMask.from_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(DynaMaskError, match="cannot be read as JSON"):
        DynaMask.from_pretrained(folder)
    (tmp_path / "file").write_text("x")
    with pytest.raises(DynaMaskError, match="is a file; give a folder"):
        model.save_pretrained(tmp_path / "file")
    with pytest.raises(DynaMaskError, match="is not a name on the hub"):
        DynaMask.from_pretrained(str(tmp_path / "missing"))


# Bundled weights


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    """An empty folder in the place of the bundled weights."""
    monkeypatch.setattr(weights, "checkpoint_dir", lambda: tmp_path)
    return tmp_path


def test_bundled_weights_are_found_by_name(checkpoints):
    assert weights.list_bundled() == {}
    (checkpoints / "manifest.json").write_text(json.dumps({"shapes": {"file": "shapes.safetensors"}}))
    with pytest.raises(DynaMaskError, match="dogs.*shapes"):
        weights.bundled_path("dogs")
    with pytest.raises(DynaMaskError, match=r"shapes\.safetensors.*missing"):
        weights.bundled_path("shapes")
    (checkpoints / "shapes.safetensors").write_bytes(b"x")
    assert weights.bundled_path("shapes") == checkpoints / "shapes.safetensors"


@pytest.mark.parametrize("text", ["{", "[]", '{"shapes": 1}', '{"shapes": {}}'])
def test_a_broken_manifest_is_one_sentence(checkpoints, text):
    (checkpoints / "manifest.json").write_text(text)
    with pytest.raises(DynaMaskError, match="manifest"):
        weights.list_bundled()
