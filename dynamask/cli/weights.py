"""``dynamask weights``: what weights there are, whether they are sound, and how they leave the project."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamask.cli.common import add_json, check_folder, say, write_json
from dynamask.structures import MASK_SIZES, DynaMaskError

if TYPE_CHECKING:
    from dynamask.models.dynamask import DynaMask
    from dynamask.models.hub import ModelCard

WEIGHTS_HELP = "bundled name, .safetensors file, saved folder, or hf://OWNER/NAME"


def add(commands: Any) -> None:
    """Add the command and its parts to the subparsers."""
    parser = commands.add_parser("weights", help="list, verify, export and share weights", description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True, metavar="part")
    listing = parts.add_parser("list", help="the bundled weights", description="The weights that travel with dynamask.")
    add_json(listing)
    listing.set_defaults(run=_list)
    verify = parts.add_parser(
        "verify",
        help="checksums, headers, a strict load, licences",
        description="Verify weights: SHA-256 against the manifest, header, a strict load, finite numbers, card and "
        "licence. Exit code 2 where anything is off.",
    )
    verify.add_argument("weights", nargs="*", metavar="WEIGHTS", help=f"{WEIGHTS_HELP} (default: all bundled)")
    add_json(verify)
    verify.set_defaults(run=_verify)
    export = parts.add_parser(
        "export",
        help="the mask branch as a torch.export program (.pt2)",
        description="Export the mask branch with a dynamic number of instances: maps, rois, labels and sizes in, masks "
        "out. Its user needs torch and torchvision alone. ONNX is no target: it has no deformable convolution.",
    )
    export.add_argument("--weights", required=True, metavar="W", help=WEIGHTS_HELP)
    export.add_argument("--size", type=int, choices=MASK_SIZES, help="one size for all instead of one for each")
    export.add_argument("--out", type=Path, required=True, metavar="FILE", help="a .pt2 file")
    export.set_defaults(run=_export)
    save = parts.add_parser(
        "save",
        help="a folder in the form of the Hugging Face hub",
        description="Write config.json, model.safetensors and README.md, the model card.",
    )
    save.add_argument("--out", type=Path, required=True, metavar="DIR")
    save.set_defaults(run=_save)
    push = parts.add_parser(
        "push",
        help="upload that folder to the Hugging Face hub",
        description="Upload weights with their card to the Hugging Face hub; `hf auth login` stores the token.",
    )
    push.add_argument("--repo", required=True, metavar="OWNER/NAME")
    push.add_argument("--private", action="store_true", help="make a new repository private")
    push.set_defaults(run=_push)
    for part in (save, push):
        part.add_argument("--weights", required=True, metavar="W", help=WEIGHTS_HELP)
        part.add_argument(
            "--licence", help="the hub's identifier of the licence (default: the bundled one's, or other)"
        )


def _list(arguments: argparse.Namespace) -> None:
    from dynamask.models.weights import list_bundled

    rows = [_row(name, entry) for name, entry in list_bundled().items()]
    if not rows:
        raise DynaMaskError("no weights are bundled here; reinstall dynamask")
    say(f"{'name':<19}{'mask AP':>8}{'GMACs':>8}{'MB':>7}  {'model':<36}licence and data", arguments.json)
    for row in rows:
        figures = "".join(
            f"{'–' if value is None else format(value, form):>{width}}"
            for value, form, width in (
                (row["mask_ap"], ".3f", 8),
                (row["mean_gmacs_per_instance"], ".4f", 8),
                (row["bytes"] / 1e6, ".1f", 7),
            )
        )
        say(f"{row['name']:<19}{figures}  {row['model']:<36}{row['licence'].split(';')[0]}", arguments.json)
        say(f"{'':<44}{textwrap.shorten(row['data'], 80, placeholder=' …')}", arguments.json)
    say("mask AP and mean GMACs an instance with the learned sizes, or the only one; on pictures kept back",
        arguments.json)  # fmt: skip
    write_json(rows, arguments.json)


def _row(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    """What the list says of one entry of the manifest; None for what the entry does not have."""
    from dynamask.models.weights import bundled_path

    scores = entry.get("scores", {})
    main = scores.get("learned") or next(iter(scores.values()), {})
    macs = main.get("mean_macs_per_instance")
    return {
        "name": name,
        "model": entry.get("model", "unknown"),
        "data": entry.get("data", "not said"),
        "licence": entry.get("licence", "not said"),
        "mask_ap": main.get("segm", {}).get("AP"),
        "box_ap": main.get("bbox", {}).get("AP"),
        "mean_gmacs_per_instance": None if macs is None else macs / 1e9,
        "macs_per_instance": entry.get("macs_per_instance"),
        "validation_images": entry.get("validation_images"),
        "validation_rule": entry.get("validation_rule"),
        "bytes": bundled_path(name).stat().st_size,
        "sha256": entry.get("sha256"),
    }


def _verify(arguments: argparse.Namespace) -> None:
    from dynamask.models.hub import find_weights, verify_folder
    from dynamask.models.weights import list_baselines, list_bundled, verify_bundled, verify_file

    bundled = {**list_bundled(), **list_baselines()}
    names = arguments.weights or list(bundled)
    if not names:
        raise DynaMaskError("no weights are bundled here; name a file or a folder")
    results = {}
    for name in names:
        if name in bundled:
            results[name] = verify_bundled(name)
        else:
            path = Path(name)
            results[name] = verify_folder(path) if path.is_dir() else verify_file(find_weights(name))
        say(f"{name:<19} {'; '.join(results[name]) or 'sound'}", arguments.json)
    write_json({name: {"sound": not found, "problems": found} for name, found in results.items()}, arguments.json)
    wrong = {name: found for name, found in results.items() if found}
    if wrong:
        name, found = next(iter(wrong.items()))
        raise DynaMaskError(f"{len(wrong)} of {len(results)} weights are not sound; first {name}: {found[0]}")


def _export(arguments: argparse.Namespace) -> None:
    from dynamask.models.masks.export import export_mask_branch, save_exported

    if arguments.out.suffix != ".pt2":
        raise DynaMaskError(f"--out {arguments.out} does not end in .pt2; other formats cannot hold the mask branch")
    model = _model(arguments.weights)
    path = save_exported(export_mask_branch(model, arguments.size), arguments.out, model, arguments.size)
    what = "a size for every instance" if arguments.size is None else f"every mask at {arguments.size}"
    say(f"{path}: the mask branch of {arguments.weights}, {what}, {path.stat().st_size / 1e6:.1f} MB")


def _model(weights: str) -> DynaMask:
    """The model of weights; those of one-stage models are refused."""
    from dynamask.models.dynamask import DynaMask
    from dynamask.models.hub import find_weights
    from dynamask.models.weights import load_model

    model = load_model(find_weights(weights))
    if not isinstance(model, DynaMask):
        raise DynaMaskError(f"{weights} is a one-stage model, which travels as its .safetensors file; copy that")
    return model


def _card(arguments: argparse.Namespace) -> ModelCard:
    """The card of the weights that were named; --licence wins over the bundled one's."""
    from dynamask.models.hub import ModelCard
    from dynamask.models.weights import list_bundled

    bundled = arguments.weights in list_bundled()
    card = ModelCard.of_bundled(arguments.weights) if bundled else ModelCard()
    if arguments.licence is None:
        return card
    return ModelCard(**{**vars(card), "licence": arguments.licence})


def _save(arguments: argparse.Namespace) -> None:
    check_folder(arguments.out)
    card = _card(arguments)
    folder = _model(arguments.weights).save_pretrained(arguments.out, card)
    say(f"{folder}: config.json, model.safetensors and README.md of {arguments.weights}")


def _push(arguments: argparse.Namespace) -> None:
    from dynamask.models.hub import SCHEME

    card = _card(arguments)
    address = _model(arguments.weights).push_to_hub(arguments.repo, card, arguments.private)
    say(f'{address}; dynamask.load("{SCHEME}{arguments.repo.removeprefix(SCHEME)}") loads it')
