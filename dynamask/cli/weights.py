"""``dynamask weights``: list, verify, export and share weights."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamask.cli.common import add_json, check_folder, print_line, write_json
from dynamask.structures import MASK_SIZES, DynaMaskError

if TYPE_CHECKING:
    from dynamask.models.dynamask import DynaMask
    from dynamask.models.hub import ModelCard

WEIGHTS_HELP = "bundled name, .safetensors file, saved folder, or hf://OWNER/NAME"


def add(commands: Any) -> None:
    """Add the command and its parts to the subparsers."""
    parser = commands.add_parser(
        "weights", help="list, verify, export and share weights", description="List, verify, export and share weights."
    )
    parts = parser.add_subparsers(dest="part", required=True, metavar="part")
    listing = parts.add_parser("list", help="list the bundled weights", description="List the bundled weights.")
    add_json(listing)
    listing.set_defaults(run=_list)
    verify = parts.add_parser(
        "verify",
        help="check checksums, headers, tensors and licences",
        description="Check the SHA-256 against the manifest, the header, strict loading, finite values, the card and "
        "the licence. The exit code is 2 if any check fails.",
    )
    verify.add_argument("weights", nargs="*", metavar="WEIGHTS", help=f"{WEIGHTS_HELP} (default: all bundled)")
    add_json(verify)
    verify.set_defaults(run=_verify)
    export = parts.add_parser(
        "export",
        help="export the mask branch as a torch.export program (.pt2)",
        description="Export the mask branch for any number of instances. It maps feature maps, RoIs, labels and sizes "
        "to masks and needs only torch and torchvision. ONNX has no deformable convolution and is not supported.",
    )
    export.add_argument("--weights", required=True, metavar="W", help=WEIGHTS_HELP)
    export.add_argument(
        "--size", type=int, choices=MASK_SIZES, help="one mask size for all instances (default: one each)"
    )
    export.add_argument("--out", type=Path, required=True, metavar="FILE", help="file to write, with the suffix .pt2")
    export.set_defaults(run=_export)
    save = parts.add_parser(
        "save",
        help="write a folder in the format of the Hugging Face hub",
        description="Write config.json, model.safetensors and README.md (the model card) into a folder.",
    )
    save.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    save.set_defaults(run=_save)
    push = parts.add_parser(
        "push",
        help="upload weights to the Hugging Face hub",
        description="Upload weights and their model card to the Hugging Face hub; `hf auth login` stores the token.",
    )
    push.add_argument("--repo", required=True, metavar="OWNER/NAME", help="repository on the hub")
    push.add_argument("--private", action="store_true", help="create the repository as private")
    push.set_defaults(run=_push)
    for part in (save, push):
        part.add_argument("--weights", required=True, metavar="W", help=WEIGHTS_HELP)
        part.add_argument(
            "--licence", help="licence identifier of the hub (default: that of bundled weights, otherwise 'other')"
        )


def _list(arguments: argparse.Namespace) -> None:
    from dynamask.models.weights import list_bundled

    rows = [_row(name, entry) for name, entry in list_bundled().items()]
    if not rows:
        raise DynaMaskError("no weights are bundled here; reinstall dynamask")
    print_line(f"{'name':<19}{'mask AP':>8}{'GMACs':>8}{'MB':>7}  {'model':<36}licence and data", arguments.json)
    for row in rows:
        ap = "–" if row["mask_ap"] is None else f"{row['mask_ap']:.3f}"
        gmacs = "–" if row["mean_gmacs_per_instance"] is None else f"{row['mean_gmacs_per_instance']:.4f}"
        figures = f"{ap:>8}{gmacs:>8}{row['bytes'] / 1e6:>7.1f}"
        print_line(f"{row['name']:<19}{figures}  {row['model']:<36}{row['licence'].split(';')[0]}", arguments.json)
        print_line(f"{'':<44}{textwrap.shorten(row['data'], 80, placeholder=' …')}", arguments.json)
    print_line("mask AP and mean GMACs per instance on held-out pictures, with learned sizes", arguments.json)
    write_json(rows, arguments.json)


def _row(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    """A row of the list from an entry of the manifest; None for figures that the entry lacks."""
    from dynamask.models.weights import bundled_path

    scores = entry.get("scores", {})
    main = scores.get("learned") or next(iter(scores.values()), {})
    macs = main.get("mean_macs_per_instance")
    return {
        "name": name,
        "model": entry.get("model", "unknown"),
        "data": entry.get("data", "unknown"),
        "licence": entry.get("licence", "unknown"),
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
        elif Path(name).is_dir():
            results[name] = verify_folder(Path(name))
        else:
            results[name] = verify_file(find_weights(name))
        print_line(f"{name:<19} {'; '.join(results[name]) or 'sound'}", arguments.json)
    write_json({name: {"sound": not found, "problems": found} for name, found in results.items()}, arguments.json)
    wrong = {name: found for name, found in results.items() if found}
    if wrong:
        name, found = next(iter(wrong.items()))
        raise DynaMaskError(f"{len(wrong)} of {len(results)} weights are not sound; first {name}: {found[0]}")


def _export(arguments: argparse.Namespace) -> None:
    from dynamask.models.masks.export import export_mask_branch, save_exported

    if arguments.out.suffix != ".pt2":
        raise DynaMaskError(f"--out {arguments.out} does not end in .pt2; torch.export programs are the only format")
    model = _model(arguments.weights)
    path = save_exported(export_mask_branch(model, arguments.size), arguments.out, model, arguments.size)
    what = "a size for each instance" if arguments.size is None else f"every mask at {arguments.size}"
    print_line(f"{path}: the mask branch of {arguments.weights}, {what}, {path.stat().st_size / 1e6:.1f} MB")


def _model(weights: str) -> DynaMask:
    """Load a two-stage model; one-stage models raise :class:`DynaMaskError`."""
    from dynamask.models.dynamask import DynaMask
    from dynamask.models.hub import find_weights
    from dynamask.models.weights import load_model

    model = load_model(find_weights(weights))
    if not isinstance(model, DynaMask):
        raise DynaMaskError(f"{weights} is a one-stage model and has no such format; copy its .safetensors file")
    return model


def _card(arguments: argparse.Namespace) -> ModelCard:
    """The model card of the weights; ``--licence`` overrides that of bundled weights."""
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
    print_line(f"{folder}: config.json, model.safetensors and README.md of {arguments.weights}")


def _push(arguments: argparse.Namespace) -> None:
    from dynamask.models.hub import SCHEME

    card = _card(arguments)
    address = _model(arguments.weights).push_to_hub(arguments.repo, card, arguments.private)
    print_line(f'{address}; dynamask.load("{SCHEME}{arguments.repo.removeprefix(SCHEME)}") loads it')
