"""Models as folders in the form of the Hugging Face hub (config.json, model.safetensors, README.md), here or there."""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCardData, snapshot_download

from dynamask.bundled import bundled_path, list_bundled
from dynamask.files import write_text
from dynamask.models.dynamask import DynaMask
from dynamask.models.weights import read_header, save_model
from dynamask.structures import MASK_SIZES, DynaMaskError

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
SCHEME = "hf://"
"""Begins the name of a model on the hub where a bare owner/name could be a path: hf://owner/name@revision."""
_HUB_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """What people should know of weights before they use them.

    Attributes:
        licence: an identifier of the hub, such as "apache-2.0"; "other" claims none.
        licence_text: what else is to be said of licences, of data for example.
        data: what the weights were trained on.
        scores: figures by policy, as the manifest of the bundled weights has them: name → {"segm": {"AP": 0–1}, …}.
        measured_on: the data that the scores are of.
        commands: that trained them.
    """

    licence: str = "other"
    licence_text: str = ""
    data: str = ""
    scores: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    measured_on: str = ""
    commands: tuple[str, ...] = ()

    @classmethod
    def of_bundled(cls, name: str) -> ModelCard:
        """The card of bundled weights, from their manifest entry."""
        bundled_path(name)  # refuses an unknown name
        entry = list_bundled()[name]
        return cls(
            licence="apache-2.0",
            licence_text=entry.get("licence", ""),
            data=entry.get("data", ""),
            scores=entry.get("scores", {}),
            measured_on=f"{entry.get('validation_images', '?')} kept-back pictures of {name} "
            f"({entry.get('validation_rule', 'no rule given')})",
            commands=tuple(entry.get("commands", ())),
        )


def save_folder(
    model: DynaMask, folder: str | Path, card: ModelCard | None = None, hub_name: str | None = None
) -> Path:
    """Write a model's folder; its model.safetensors is a weights file as every other, header included.

    Args:
        hub_name: "owner/name" under which its card says how to load it; by default its path.

    Raises:
        DynaMaskError: the folder is a file, or cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise DynaMaskError(f"{folder} is a file; give a folder")
    save_model(model, folder / WEIGHTS)
    write_text(folder / CONFIG, json.dumps(model.config.to_dict(), indent=1) + "\n")
    write_text(folder / CARD, card_text(model, card or ModelCard(), folder.name, hub_name))
    return folder


def push(
    model: DynaMask,
    repo: str,
    card: ModelCard | None = None,
    private: bool = False,
    token: str | None = None,
    message: str = "DynaMask weights",
) -> str:
    """Upload a model's folder to the hub, whose repository is made if it does not exist; returns its address.

    Args:
        repo: "owner/name".
        token: of the hub; by default the one that `hf auth login` stored.

    Raises:
        DynaMaskError: the name is none, or the hub cannot be reached or refuses.
    """
    name = parse_hub_name(repo)[0]
    with tempfile.TemporaryDirectory() as work:
        folder = save_folder(model, Path(work) / name.split("/")[1], card, name)
        try:
            api = HfApi(token=token)
            address = api.create_repo(repo_id=name, private=private, exist_ok=True)
            api.upload_folder(repo_id=name, folder_path=folder, commit_message=message)
        except Exception as error:  # many kinds, which change with the version of the hub's client
            raise DynaMaskError(
                f"{name} cannot be pushed to the hub ({_short(error)}); check the connection, the name and the "
                "token of `hf auth login`"
            ) from error
    return str(address)


def find_weights(name: str | Path, local_files_only: bool = False) -> Path:
    """The weights file that a name stands for.

    Args:
        name: the path of a .safetensors file or of a model's folder, a bundled name, or hf://owner/name[@revision],
            which is downloaded unless the cache has it.
        local_files_only: read the hub's cache and never the network.

    Raises:
        DynaMaskError: there is no such thing, or the hub cannot be reached.
    """
    if str(name).startswith(SCHEME):
        return _fetch(str(name).removeprefix(SCHEME), local_files_only)
    path = Path(name)
    if str(name) in list_bundled():  # a folder of the same name is ./NAME
        return bundled_path(str(name))
    if path.is_dir():
        if not (path / WEIGHTS).is_file():
            raise DynaMaskError(f"folder {path} holds no {WEIGHTS}; give the folder of a saved model, or a file")
        return path / WEIGHTS
    return path if path.suffix == ".safetensors" else bundled_path(str(name))


def parse_hub_name(name: str) -> tuple[str, str | None]:
    """("owner/name", revision or None) of owner/name[@revision], with or without hf://."""
    found = _HUB_NAME.fullmatch(str(name).removeprefix(SCHEME))
    if found is None:
        raise DynaMaskError(f"{name!r} is no name on the hub; write owner/name or owner/name@revision")
    return found["repo"], found["revision"]


def _fetch(name: str, local_files_only: bool) -> Path:
    repo, revision = parse_hub_name(name)
    try:
        folder = snapshot_download(
            repo, revision=revision, allow_patterns=[CONFIG, WEIGHTS, CARD], local_files_only=local_files_only
        )
    except Exception as error:  # many kinds, which change with the version of the hub's client
        raise DynaMaskError(
            f"{SCHEME}{name} cannot be had from the hub ({_short(error)}); check the name and the connection"
        ) from error
    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise DynaMaskError(f"{SCHEME}{name} holds no {WEIGHTS}; it is no model of dynamask")
    return path


def check_folder_config(path: Path) -> None:
    """Refuse a folder whose config.json speaks of another model than the weights' own header."""
    beside = path.parent / CONFIG
    if path.name != WEIGHTS or not beside.is_file():
        return
    try:
        written = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DynaMaskError(f"{beside} cannot be read as JSON; save the model again") from error
    if written != read_header(path)["config"]:
        raise DynaMaskError(f"{beside} and the header of {path.name} describe different models; save the model again")


def card_text(model: DynaMask, card: ModelCard, title: str, hub_name: str | None = None) -> str:
    """The README.md of a model's folder: the hub's fields in front, then text and tables for people."""
    config, costs = model.config, model.mask_branch.costs
    results = [
        EvalResult(
            task_type="image-segmentation", dataset_type="custom", dataset_name=card.measured_on or "not said",
            metric_type=f"{kind}_ap", metric_name=f"{word} AP, policy {policy}",
            metric_value=round(scores[kind]["AP"], 4),
        )
        for policy, scores in card.scores.items()
        for kind, word in (("bbox", "box"), ("segm", "mask"), ("boundary", "boundary"))
        if scores.get(kind, {}).get("AP") is not None
    ]  # fmt: skip
    fields = ModelCardData(
        license=card.licence, library_name="dynamask", pipeline_tag="image-segmentation",
        tags=["instance-segmentation", "object-detection", "dynamask", "pytorch"],
        model_name=title if results else None, eval_results=results or None,
    )  # fmt: skip
    names = ", ".join(config.class_names[1:13]) + (", …" if len(config.class_names) > 13 else "")
    address = f"{SCHEME}{hub_name}" if hub_name else f"path/to/{title}"
    macs = " / ".join(f"{value / 1e9:.4f}" for value in costs.macs_per_instance)
    parts = [
        f"# {title}",
        f"DynaMask instance segmentation, model `{config.name}`: a mask of {', '.join(map(str, MASK_SIZES))} pixels a "
        f"side for every instance, as its own switch chooses. {len(config.class_names) - 1} classes: {names}.",
        f'```python\nimport dynamask\n\npredictor = dynamask.load("{address}")\n'
        'prediction = predictor("picture.jpg")\n```',
        f"GMACs of one instance at each size (1 MAC = 2 FLOPs): {macs}; the switch {costs.switch_macs / 1e9:.4f}.",
        card.data,
        _score_table(card),
        "Trained by:\n\n```bash\n" + "\n".join(card.commands) + "\n```" if card.commands else "",
        f"Licence: {card.licence_text or card.licence}",
    ]
    return f"---\n{fields.to_yaml()}\n---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def _score_table(card: ModelCard) -> str:
    """A Markdown table of the card's scores; empty where it has none."""
    if not card.scores:
        return ""
    rows = [f"Scores on {card.measured_on or 'data that are not named'}:", ""]
    rows += ["| policy | box AP | mask AP | boundary AP | mean GMACs |", "|---|---|---|---|---|"]
    for policy, scores in card.scores.items():
        values = [scores.get(kind, {}).get("AP") for kind in ("bbox", "segm", "boundary")]
        macs = scores.get("mean_macs_per_instance")
        cells = ["–" if value is None else f"{value:.3f}" for value in values]
        rows.append(f"| {policy} | {' | '.join(cells)} | {'–' if macs is None else f'{macs / 1e9:.4f}'} |")
    return "\n".join(rows)


def _short(error: BaseException) -> str:
    """The first sentence of an error, on one line."""
    return " ".join(str(error).split()).split(". ")[0][:160]
