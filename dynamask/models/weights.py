"""Weights: from a name to a file, from its header to a configuration, and from its tensors into a model.

A weights file is a safetensors file whose header holds the configuration of its model. It is written atomically and
loaded strictly. The weights that travel with the package are listed in ``checkpoints/manifest.json``, a JSON object:
name → entry. Every entry has ``file``, the name of a file in the same folder; entries of another family than DynaMask's
have ``family``. All other fields (model, data, recipe, seed, sha256, scores) record where the weights come from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from dynamask.config import BaseModelConfig, ModelConfig
from dynamask.models.self_test import self_test_problems
from dynamask.models.tensor_files import value_problems, write_tensors
from dynamask.structures import DynaMaskError, first_sentence

FORMAT = "dynamask-1"
BRANCH_FORMAT = "dynamask-branch-1"
"""Format of files that hold only a mask branch, and name the bundled weights that hold its detector."""
BASELINES = "baselines"
"""Folder of the baselines within the bundled weights, with their own manifest."""
PARTS = ("all", "detector", "backbone")
"""Parts of a model that :func:`load_weights` can load: "detector" is everything but the mask branch, or but SODAR's
aggregation; "backbone" includes the FPN."""

STORED_PREFIXES = {"detector.": "", "mask_branch.": "roi_heads.mask_branch."}
"""Prefixes of modules → prefixes of their tensors in weights files; other names are the same in both."""
_BACKBONE = "backbone."
_QUALITY = STORED_PREFIXES["mask_branch."] + "quality."
_MASK_PARTS = (STORED_PREFIXES["mask_branch."], "head.aggregation", "head.context.", "aggregation.")
"""Prefixes, in weights files, of the mask branch and of SODAR's aggregation."""

Builder = Callable[[BaseModelConfig], nn.Module]
_builders: list[Builder] = []


class DamagedWeightsError(DynaMaskError):
    """The numbers of a weights file are not usable; ``problems`` says why, each a clause."""

    def __init__(self, path: Path, problems: list[str]) -> None:
        super().__init__(f"weights {path} are damaged: {'; '.join(problems)}; give another file")
        self.problems = problems


def register_builder(builder: Builder) -> Builder:
    """Decorator for the function that builds models of all families from their configuration.

    The model classes load weights and the builder imports the model classes, so it cannot be imported here.
    """
    _builders.append(builder)
    return builder


# Names of bundled weights


def checkpoint_dir() -> Path:
    """Folder of the bundled weights: inside the package in a built wheel, next to it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "checkpoints"
    return inside if inside.is_dir() else package.parent / "checkpoints"


def list_bundled(family: str | None = None) -> dict[str, dict[str, Any]]:
    """Manifest entries of the bundled weights by name, in the manifest's order; empty where none are bundled.

    Args:
        family: only those of "two-stage" or "one-stage"; None lists all.

    Raises:
        DynaMaskError: the manifest is not a JSON object of entries that each name a file.
    """
    entries = _read_manifest(checkpoint_dir())
    return {name: e for name, e in entries.items() if family in (None, e.get("family", ModelConfig.FAMILY))}


def list_baselines() -> dict[str, dict[str, Any]]:
    """Manifest entries of the baselines: other mask branches on the detector of bundled weights.

    They are loaded by name like all bundled weights, but are left out of :func:`list_bundled`.
    """
    return _read_manifest(checkpoint_dir() / BASELINES)


def bundled_path(name: str) -> Path:
    """Path of the bundled weights or baseline called ``name``.

    Raises:
        DynaMaskError: no bundled weights have this name (the message lists those that do), or their file is missing.
    """
    folder, entry = _find_bundled(name)
    path = folder / entry["file"]
    if not path.is_file():
        raise DynaMaskError(f"the file {path.name} of the bundled weights {name!r} is missing; reinstall dynamask")
    return path


def _find_bundled(name: str) -> tuple[Path, dict[str, Any]]:
    """Folder and manifest entry of bundled weights or a baseline."""
    manifests = {checkpoint_dir(): list_bundled(), checkpoint_dir() / BASELINES: list_baselines()}
    for folder, entries in manifests.items():
        if name in entries:
            return folder, entries[name]
    known = ", ".join(each for entries in manifests.values() for each in entries) or "none"
    raise DynaMaskError(f"no bundled weights are called {name!r}; choose from {known}, or give a .safetensors file")


def _read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return {}
    try:
        entries = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DynaMaskError("the manifest of the bundled weights is unreadable; reinstall dynamask") from error
    if not isinstance(entries, dict) or not all(isinstance(e, dict) and "file" in e for e in entries.values()):
        raise DynaMaskError("the manifest of the bundled weights does not name a file for each; reinstall dynamask")
    return entries


# Files


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def detector_digest(path: Path) -> str:
    """SHA-256 of the names and values of the detector's tensors in whole weights, in hexadecimal.

    It stays the same when the mask branch, the switch or the quality head of the file changes.
    """
    digest = hashlib.sha256()
    for name, value in sorted(_part(load_file(path), "detector").items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.contiguous().view(torch.uint8).numpy().tobytes() if value.ndim else value.numpy().tobytes())
    return digest.hexdigest()


def read_header(path: Path) -> dict[str, Any]:
    """``config`` and ``training`` of a weights file; for files of only a mask branch also its ``detector``.

    Raises:
        DynaMaskError: the file is missing, unreadable, or not written by dynamask.
    """
    if not path.is_file():
        raise DynaMaskError(f"weights {path} do not exist; give a bundled name or the path of a .safetensors file")
    try:
        with safe_open(path, framework="pt") as stored:
            header = stored.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise DynaMaskError(
            f"weights {path} cannot be read as safetensors; give a file written by dynamask train ({error})"
        ) from error
    if header.get("format") not in (FORMAT, BRANCH_FORMAT):
        raise DynaMaskError(f"weights {path} were not written by dynamask; give a file written by dynamask train")
    try:
        found = {part: json.loads(header[part]) for part in ("config", "training")}
        if not all(isinstance(values, dict) for values in found.values()):
            raise ValueError("they are no objects")
        if header["format"] == BRANCH_FORMAT:
            named = json.loads(header["detector"])
            found["detector"] = {"name": str(named["name"]), "sha256": str(named["sha256"])}
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise DynaMaskError(f"the header of {path} is damaged; give a file written by dynamask train") from error
    return found


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a weights file; files of only a mask branch are completed by the detector of bundled weights.

    Raises:
        DynaMaskError: the file is not a weights file, or its detector is not bundled or of another version.
    """
    header, tensors = read_header(path), load_file(path)
    if "detector" not in header:
        return tensors
    named = header["detector"]
    try:
        whole = bundled_path(named["name"])
    except DynaMaskError as error:
        raise DynaMaskError(f"weights {path} hold only a mask branch, and its detector is missing: {error}") from error
    if detector_digest(whole) != named["sha256"]:
        raise DynaMaskError(
            f"weights {path} hold only a mask branch, trained on another version of the detector {named['name']!r} "
            "than the bundled one; train it again or install the version that brought it"
        )
    return {**_part(load_file(whole), "detector"), **tensors}


def save_model(
    model: nn.Module, path: Path, state: dict[str, Tensor] | None = None, training: dict[str, Any] | None = None
) -> None:
    """Write weights and configuration to one safetensors file, atomically.

    Args:
        model: its configuration is stored, and its weights unless ``state`` is given.
        path: a .safetensors file; replaced if it exists.
        state: weights to store instead of the model's (a moving average), named as in ``model.state_dict()``.
        training: JSON values stored with the configuration (recipe, seed, images seen).
    """
    named = (state or model.state_dict()).items()
    tensors = {stored_name(name): value.detach().cpu().contiguous() for name, value in named}
    header = {"format": FORMAT, "config": json.dumps(model.config.to_dict()), "training": json.dumps(training or {})}
    write_tensors(path, tensors, header)


def copy_weights(source: Path, path: Path, half: bool = False, **settings: Any) -> None:
    """Copy the weights of a whole model into one file, atomically.

    Args:
        path: a .safetensors file; replaced if it exists.
        half: store floating-point tensors as float16. Models load them as float32.
        settings: fields of the model's configuration with other values than the source's.

    Raises:
        DynaMaskError: a value exceeds the range of float16, or a setting is not valid.
    """
    header, tensors = read_header(source), read_tensors(source)
    if half:
        tensors = {key: value.half() if value.is_floating_point() else value for key, value in tensors.items()}
        beyond = [key for key, value in tensors.items() if not torch.isfinite(value).all()]
        if beyond:
            raise DynaMaskError(
                f"{len(beyond)} tensors of {source} exceed the range of float16, first {beyond[0]}; keep float32"
            )
    config = BaseModelConfig.from_dict({**header["config"], **settings}).to_dict()
    texts = {"config": json.dumps(config), "training": json.dumps(header["training"])}
    write_tensors(path, tensors, {"format": FORMAT, **texts})


def save_branch(source: Path, path: Path, detector: str) -> None:
    """Write only the mask branch of a weights file, with the name and digest of the bundled weights of its detector.

    Args:
        source: whole weights, whose detector must be equal, bit for bit, to that of the bundled weights.
        path: a .safetensors file; replaced if it exists.
        detector: the name of bundled weights.

    Raises:
        DynaMaskError: the detectors differ; the message names the first tensors that do.
    """
    header, tensors = read_header(source), load_file(source)
    whole = bundled_path(detector)
    theirs, own = _part(load_file(whole), "detector"), _part(tensors, "detector")
    unfit = _mismatch(theirs, own) or [
        key for key in sorted(own) if not torch.equal(own[key], theirs[key].to(own[key]))
    ]
    if unfit:
        raise DynaMaskError(
            f"the detector of {source} is not that of {detector!r}: {_differences(unfit)}; train it with "
            f"--init {detector} --freeze detector"
        )
    branch = {key: value for key, value in tensors.items() if key not in own}
    named = {"name": detector, "sha256": detector_digest(whole)}
    texts = {key: json.dumps(value) for key, value in {**header, "detector": named}.items()}
    write_tensors(path, branch, {"format": BRANCH_FORMAT, **texts})


# Models


def load_model(path: Path, device: str | torch.device = "cpu", **settings: Any) -> nn.Module:
    """Build the model that a weights file describes and load it strictly, in evaluation mode.

    Args:
        settings: fields of the model's configuration with other values than the file's.
    """
    config = BaseModelConfig.from_dict({**read_header(path)["config"], **settings})
    tensors = read_tensors(path)
    _check_widths(config, tensors, path)
    try:
        model = _builders[-1](config)
    except DynaMaskError:
        raise
    except (ArithmeticError, AssertionError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        raise DynaMaskError(
            f"no model can be built from the configuration in {path} ({first_sentence(error)}); give weights that "
            "dynamask wrote"
        ) from error
    load_weights(model, path, tensors=tensors)
    return model.to(device).eval()


def _check_widths(config: BaseModelConfig, tensors: dict[str, Tensor], path: Path) -> None:
    """Refuse layers much wider than the widest tensor of the file before memory is taken for them."""
    widest = max((side for value in tensors.values() for side in value.shape), default=0)
    for name, value in vars(config).items():
        if isinstance(value, int) and name.endswith(("_channels", "_hidden")) and value > max(widest, 1024):
            raise DynaMaskError(f"weights {path} do not fit the model: {name} is {value}, and no tensor is as wide")


def load_weights(model: nn.Module, path: Path, part: str = "all", tensors: dict[str, Tensor] | None = None) -> None:
    """Load a weights file, or one of its ``PARTS``, into a model; the other tensors of the model stay as they are.

    Args:
        tensors: the file's, by default as :func:`read_tensors` reads them.

    Raises:
        DynaMaskError: names, shapes or kinds of numbers differ, or numbers are not usable; the message names the first
            keys that are wrong, and nothing is loaded.
    """
    tensors = read_tensors(path) if tensors is None else tensors
    stored, own = _part(tensors, part), _part(stored_state(model), part)
    unfit = _mismatch(stored, own)
    if unfit:
        subject = f"weights {path} do" if part == "all" else f"the {part} of {path} does"
        raise DynaMaskError(f"{subject} not fit the model: {_differences(unfit)}")
    problems = value_problems(stored, own)
    if problems:
        raise DamagedWeightsError(path, problems)
    names = {stored_name(name): name for name in model.state_dict()}
    model.load_state_dict({names[key]: value for key, value in stored.items()}, strict=False)


def initialise(model: nn.Module, path: Path, part: str | None = None, allow_new_classes: bool = True) -> str:
    """Initialise a model, or a part of it, with the weights of a trained one.

    A detector with other classes keeps the scores of the classes that both know by name, if its kind can do so
    (:meth:`dynamask.models.detectors.base.Detector.match_classes`). A quality head that only one of the two has is left
    out, or keeps its random weights.

    Args:
        path: of a weights file.
        part: one of ``PARTS``. None takes all weights from a model of the same kind, the detector from one with another
            mask branch or aggregation, and the backbone from any other model.
        allow_new_classes: whether classes may remain whose scores have random weights.

    Returns:
        A sentence that says what was loaded.

    Raises:
        DynaMaskError: the part does not exist, or does not fit the model, or classes are new and not allowed.
    """
    if part not in (None, *PARTS):
        raise DynaMaskError(f"part {part!r} is unknown; choose one of {', '.join(PARTS)}")
    theirs, own = BaseModelConfig.from_dict(read_header(path)["config"]), model.config
    if part is None and theirs.detector_kind != own.detector_kind:
        part = "backbone"
    elif part is None:
        part = "all" if theirs.mask_kind == own.mask_kind else "detector"
    tensors, new = read_tensors(path), []
    if part != "backbone" and hasattr(model, "detector") and theirs.class_names != own.class_names:
        tensors, new = model.detector.match_classes(tensors, theirs.class_names[1:], own.class_names[1:])
    some = f"{', '.join(new[:5])}{', …' if len(new) > 5 else ''}"
    if new and not allow_new_classes:
        raise DynaMaskError(f"{path} has no classes {some}; train the detector as well, so that it learns them")
    heads = [{k: v for k, v in side.items() if k.startswith(_QUALITY)} for side in (tensors, stored_state(model))]
    added = part == "all" and bool(heads[1]) and not heads[0]
    if part == "all" and bool(heads[0]) != bool(heads[1]):
        tensors = {name: value for name, value in tensors.items() if name not in heads[0]} | heads[1]
    load_weights(model, path, part, tensors)
    random = f"; the scores of new classes are random: {some}" if new else ""
    return _loaded(path, part, theirs, own) + random + ("; the quality head is new" if added else "")


def _loaded(path: Path, part: str, theirs: BaseModelConfig, own: BaseModelConfig) -> str:
    """A sentence that says what :func:`initialise` loaded."""
    if part == "all":
        return f"loaded all weights of {path}"
    if part == "backbone":
        return f"loaded backbone and FPN of {path}; all other weights are random"
    if isinstance(own, ModelConfig):
        return f"loaded the detector of {path}, without its mask branch ({theirs.mask_kind}); " + (
            f"the mask branch ({own.mask_kind}) has random weights"
        )
    rest = "this model does not have" if own.mask_kind is None else "has random weights"
    return f"loaded all weights of {path} except those of the aggregation, which {rest}"


def stored_name(name: str) -> str:
    """The name in weights files of a tensor of ``model.state_dict()``."""
    prefix = next((p for p in STORED_PREFIXES if name.startswith(p)), "")
    return STORED_PREFIXES.get(prefix, "") + name.removeprefix(prefix)


def stored_state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model under their names in weights files."""
    return {stored_name(name): value for name, value in model.state_dict().items()}


def _part(tensors: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    """The tensors, under their names in weights files, of one of ``PARTS``."""
    if part == "backbone":
        return {name: value for name, value in tensors.items() if name.startswith(_BACKBONE)}
    if part == "detector":
        return {name: value for name, value in tensors.items() if not name.startswith(_MASK_PARTS)}
    return tensors


def _mismatch(stored: dict[str, Tensor], own: dict[str, Tensor]) -> list[str]:
    """Names that only one side has, then those whose shapes differ."""
    both = set(stored) & set(own)
    return sorted(set(stored) ^ set(own)) + sorted(key for key in both if stored[key].shape != own[key].shape)


def _differences(names: list[str]) -> str:
    return f"{len(names)} tensors differ, first {', '.join(names[:3])}"


# Verification


def verify_bundled(name: str) -> list[str]:
    """Check bundled weights against the manifest.

    The file must exist, have the SHA-256 of the manifest, load strictly into the model of its header, agree with the
    manifest on the model and its MACs, and hold finite numbers; licence and card must exist.

    Returns:
        The problems, each a clause; empty where there are none.

    Raises:
        DynaMaskError: the manifest has no such name, or cannot be read.
    """
    entries, baselines = list_bundled(), list_baselines()
    if name not in entries and name not in baselines:
        raise DynaMaskError(f"no bundled weights are called {name!r}; choose from {', '.join(entries) or 'none'}")
    entry = entries.get(name) or baselines[name]
    folder = checkpoint_dir() if name in entries else checkpoint_dir() / BASELINES
    path = folder / entry["file"]
    card = path.with_suffix(".md") if name in entries else folder / "README.md"
    problems = [f"the manifest gives no {key}" for key in ("sha256", "licence", "model", "data") if not entry.get(key)]
    if not card.is_file():
        problems.append(f"the card {card.name} is missing")
    if not path.is_file():
        return [*problems, f"the file {path.name} is missing"]
    if entry.get("sha256") and file_digest(path) != entry["sha256"]:
        problems.append("its SHA-256 is not the manifest's")
    return [*problems, *verify_file(path, entry)]


def verify_file(path: Path, entry: dict[str, Any] | None = None) -> list[str]:
    """Check that a weights file loads strictly, holds usable numbers and passes the self-test.

    Args:
        entry: of a manifest, whose ``model``, ``macs_per_instance`` and ``self_test`` are compared with the file's.

    Returns:
        The problems, each a clause; empty where there are none.
    """
    entry = entry or {}
    try:
        model = load_model(path)
    except DamagedWeightsError as error:
        return error.problems
    except DynaMaskError as error:
        return [f"it cannot be loaded: {error}"]
    problems = self_test_problems(model, entry.get("self_test"))
    if entry.get("model", model.config.name) != model.config.name:
        problems.append(f"it is a {model.config.name}, and the manifest says {entry['model']}")
    branch = getattr(model, "mask_branch", None)
    macs = None if branch is None else list(branch.costs.macs_per_instance)
    if branch is not None and entry.get("macs_per_instance", macs) != macs:
        problems.append(f"its masks cost {macs} MACs, and the manifest says {entry['macs_per_instance']}")
    return problems
