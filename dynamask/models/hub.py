"""Models as folders in the form of the Hugging Face hub: config.json, model.safetensors, and README.md, the card."""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import huggingface_hub
import torch
from torch import nn

from dynamask.config import BaseModelConfig
from dynamask.files import write_text
from dynamask.models.weights import (
    bundled_path,
    list_bundled,
    load_model,
    read_header,
    save_model,
    verify_file,
)
from dynamask.structures import DynaMaskError, first_sentence

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
CARD = "README.md"
SCHEME = "hf://"
"""Marks the name of a model on the hub where owner/name could be a path: hf://owner/name@revision."""
_HUB_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """Contents of a model card that do not follow from the model's settings.

    Attributes:
        licence: an identifier of the hub, such as "apache-2.0"; "other" makes no claim.
        licence_text: further licence information, for example of the training data.
        data: training data.
        scores: results by policy, as in the manifest of the bundled weights: name → {"segm": {"AP": 0–1}, …}.
        measured_on: the data of the scores.
        commands: the training commands.
    """

    licence: str = "other"
    licence_text: str = ""
    data: str = ""
    scores: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    measured_on: str = ""
    commands: tuple[str, ...] = ()

    @classmethod
    def of_bundled(cls, name: str) -> ModelCard:
        """The card of bundled weights, from their manifest entry; an unknown name raises :class:`DynaMaskError`."""
        bundled_path(name)
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


class PretrainedModel(nn.Module):
    """Base class of the models: loads and saves weights under names, in files, in folders and on the hub.

    Attributes:
        config: the settings that the model was built from; stored with its weights.
    """

    config: BaseModelConfig

    @classmethod
    def from_pretrained(
        cls, name_or_folder: str | Path, device: str | torch.device = "cpu", local_files_only: bool = False
    ) -> Self:
        """Load a model of this class in evaluation mode.

        Args:
            name_or_folder: a saved folder, a .safetensors file, a bundled name, or a model on the Hugging Face hub,
                "owner/name" or "owner/name@revision", with or without "hf://", which is downloaded unless it is
                cached. A path that exists takes precedence.
            local_files_only: never use the network.

        Raises:
            DynaMaskError: nothing is found, it is not a model of dynamask, or it is a model of another class.
        """
        name = str(name_or_folder)
        remote = "/" in name and not Path(name).exists() and Path(name).suffix != ".safetensors"
        path = find_weights(f"{SCHEME}{name.removeprefix(SCHEME)}" if remote else name, local_files_only)
        check_folder_config(path)
        model = load_model(path, device)
        if not isinstance(model, cls):
            kind = type(model).__name__
            raise DynaMaskError(f"{name} holds a {kind} and not a {cls.__name__}; load it with {kind}.from_pretrained")
        return model

    def save_pretrained(self, folder: str | Path, card: ModelCard | None = None, hub_name: str | None = None) -> Path:
        """Write config.json, model.safetensors (a weights file like all others) and the model card into a folder.

        Args:
            folder: created if it does not exist.
            hub_name: "owner/name", from which the card shows how to load the model; by default a path.

        Returns:
            The folder.

        Raises:
            DynaMaskError: the folder is a file, or cannot be written.
        """
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise DynaMaskError(f"{folder} is a file; give a folder")
        save_model(self, folder / WEIGHTS)
        write_text(folder / CONFIG, json.dumps(self.config.to_dict(), indent=1) + "\n")
        write_text(folder / CARD, card_text(self, card or ModelCard(), folder.name, hub_name))
        return folder

    def push_to_hub(
        self, repo: str, card: ModelCard | None = None, private: bool = False, token: str | None = None
    ) -> str:
        """Upload what :meth:`save_pretrained` writes to the Hugging Face hub.

        Args:
            repo: "owner/name"; created if it does not exist.
            token: for the hub; by default the one that `hf auth login` stored.

        Returns:
            The address of the repository.

        Raises:
            DynaMaskError: the name is not valid, or the hub cannot be reached or refuses.
        """
        name = parse_hub_name(repo)[0]
        with tempfile.TemporaryDirectory() as work:
            folder = self.save_pretrained(Path(work) / name.split("/")[1], card, name)
            try:
                api = huggingface_hub.HfApi(token=token)
                address = api.create_repo(repo_id=name, private=private, exist_ok=True)
                api.upload_folder(repo_id=name, folder_path=folder, commit_message="DynaMask weights")
            except Exception as error:  # its types change with the version of the hub's client
                raise DynaMaskError(
                    f"{name} cannot be pushed to the hub ({first_sentence(error)}); check the connection, the name and "
                    "the token of `hf auth login`"
                ) from error
        return str(address)

    def probe(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Named raw outputs for an image (3, H, W) in [0, 1], without any choice that rounding could change.

        :mod:`dynamask.models.self_test` compares them with stored figures.
        """
        raise NotImplementedError

    def card_paragraphs(self) -> tuple[str, str]:
        """Two Markdown paragraphs of the model card: what the model predicts, and what it costs (may be empty)."""
        raise NotImplementedError


def find_weights(name: str | Path, local_files_only: bool = False) -> Path:
    """The weights file of a name.

    Args:
        name: the path of a .safetensors file or of a model's folder, a bundled name, or hf://owner/name[@revision],
            which is downloaded unless it is cached.
        local_files_only: never use the network, only the cache.

    Raises:
        DynaMaskError: nothing is found, or the hub cannot be reached.
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
        raise DynaMaskError(f"{name!r} is not a name on the hub; write owner/name or owner/name@revision")
    return found["repo"], found["revision"]


def _fetch(name: str, local_files_only: bool) -> Path:
    repo, revision = parse_hub_name(name)
    try:
        folder = huggingface_hub.snapshot_download(
            repo, revision=revision, allow_patterns=[CONFIG, WEIGHTS, CARD], local_files_only=local_files_only
        )
    except Exception as error:  # its types change with the version of the hub's client
        raise DynaMaskError(
            f"{SCHEME}{name} cannot be downloaded from the hub ({first_sentence(error)}); check the name and "
            "the connection"
        ) from error
    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise DynaMaskError(f"{SCHEME}{name} holds no {WEIGHTS}; it is not a model of dynamask")
    return path


def check_folder_config(path: Path) -> None:
    """Refuse a folder whose config.json differs from the configuration in the header of its weights."""
    config_file = path.parent / CONFIG
    if path.name != WEIGHTS or not config_file.is_file():
        return
    try:
        written = json.loads(config_file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DynaMaskError(f"{config_file} cannot be read as JSON; save the model again") from error
    if written != read_header(path)["config"]:
        raise DynaMaskError(
            f"{config_file} and the header of {path.name} describe different models; save the model again"
        )


def verify_folder(folder: Path) -> list[str]:
    """Check a saved folder: its three files, its licence and its weights.

    Returns:
        The problems, each a clause; empty where there are none.
    """
    problems = [f"{name} is missing" for name in (CONFIG, WEIGHTS, CARD) if not (folder / name).is_file()]
    if f"{CARD} is missing" not in problems and "\nlicense:" not in (folder / CARD).read_text(encoding="utf-8"):
        problems.append(f"{CARD} names no licence")
    if not (folder / WEIGHTS).is_file():
        return problems
    try:
        check_folder_config(folder / WEIGHTS)
    except DynaMaskError as error:
        return [*problems, str(error)]
    return [*problems, *verify_file(folder / WEIGHTS)]


def card_text(model: PretrainedModel, card: ModelCard, title: str, hub_name: str | None = None) -> str:
    """The README.md of a model's folder: the metadata of the hub, then text and tables."""
    names = model.config.class_names
    predicts, costs = model.card_paragraphs()
    results = [
        huggingface_hub.EvalResult(
            task_type="image-segmentation",
            dataset_type="custom",
            dataset_name=card.measured_on or "not given",
            metric_type=f"{kind}_ap",
            metric_name=f"{word} AP, policy {policy}",
            metric_value=round(scores[kind]["AP"], 4),
        )
        for policy, scores in card.scores.items()
        for kind, word in (("bbox", "box"), ("segm", "mask"), ("boundary", "boundary"))
        if scores.get(kind, {}).get("AP") is not None
    ]
    fields = huggingface_hub.ModelCardData(
        license=card.licence,
        library_name="dynamask",
        pipeline_tag="image-segmentation",
        tags=["instance-segmentation", "object-detection", "dynamask", "pytorch"],
        model_name=title if results else None,
        eval_results=results or None,
    )
    classes = ", ".join(names[1:13]) + (", …" if len(names) > 13 else "")
    address = f"{SCHEME}{hub_name}" if hub_name else f"path/to/{title}"
    parts = [
        f"# {title}",
        f"{predicts} {len(names) - 1} classes: {classes}.",
        f'```python\nimport dynamask\n\npredictor = dynamask.load("{address}")\n'
        'prediction = predictor("picture.jpg")\n```',
        costs,
        card.data,
        _score_table(card),
        "Trained by:\n\n```bash\n" + "\n".join(card.commands) + "\n```" if card.commands else "",
        f"Licence: {card.licence_text or card.licence}",
    ]
    return f"---\n{fields.to_yaml()}\n---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def _score_table(card: ModelCard) -> str:
    """A Markdown table of the scores; empty without scores."""
    if not card.scores:
        return ""
    rows = [f"Scores on {card.measured_on or 'data that are not given'}:", ""]
    rows += ["| policy | box AP | mask AP | boundary AP | mean GMACs |", "|---|---|---|---|---|"]
    for policy, scores in card.scores.items():
        values = [scores.get(kind, {}).get("AP") for kind in ("bbox", "segm", "boundary")]
        macs = scores.get("mean_macs_per_instance")
        cells = ["–" if value is None else f"{value:.3f}" for value in values]
        rows.append(f"| {policy} | {' | '.join(cells)} | {'–' if macs is None else f'{macs / 1e9:.4f}'} |")
    return "\n".join(rows)
