"""Shared by the commands: flags, checks, JSON output, printed lines and exit codes."""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamask.config import parse_refine
from dynamask.files import check_file, explain, system_reason, write_text
from dynamask.structures import DynaMaskError, ReportedElsewhereError

if TYPE_CHECKING:
    from dynamask.data.instances import HasImageIds
    from dynamask.data.sources import Data, Transforms

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells give it."""
MOST = 10**9
"""Upper limit of flags that are counts."""
DEVICE_HELP = "auto (CUDA, then MPS, then CPU), cpu, cuda, cuda:N or mps (default: auto)"
DATA_HELP = (
    "shapes:SEED:COUNT, a folder with images/ and annotations.json, the root of COCO, LVIS or Cityscapes, or a COCO "
    "export of CVAT, Label Studio, Roboflow, FiftyOne, labelme, COCO Annotator or VIA"
)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``."""
    parser.add_argument("--json", metavar="FILE", help="file for the result as JSON; - prints only the JSON")


def add_choice(parser: argparse.ArgumentParser, policies: str) -> None:
    """Add ``--policy`` and ``--budget``."""
    text = "default: learned; with a budget quality, where the weights have a quality head"
    parser.add_argument("--policy", help=f"resolution policy: {policies} ({text})")
    parser.add_argument("--budget", type=float, metavar="G", help="budget in mean GMACs per instance")


def add_mask_nms(parser: argparse.ArgumentParser) -> None:
    """Add ``--mask-nms``."""
    parser.add_argument(
        "--mask-nms",
        type=number_in(0.0, 1.0),
        metavar="IOU",
        help="leave out the worse-scored of two objects of one class from this mask IoU on, 0-1; 0 leaves out none "
        "(default: the weights' value)",
    )


def add_refine(parser: Any) -> None:
    """Add ``--refine``."""
    parser.add_argument(
        "--refine",
        type=refine_shares,
        metavar="A,B,C",
        help="boundary refinement: shares of the cells at 28, 56 and 112 that are computed, those nearest to the "
        "outline, or dense for all (default: the model's value)",
    )


def add_score(parser: argparse.ArgumentParser, text: str) -> None:
    """Add ``--score`` with this help."""
    parser.add_argument("--score", type=number_in(0.0, 1.0), metavar="SCORE", help=text)


def add_rescore(parser: argparse.ArgumentParser) -> None:
    """Add ``--rescore``."""
    parser.add_argument("--rescore", action="store_true", help="multiply scores by the predicted mask IoU")


def number_in(low: float, high: float) -> Callable[[str], float]:
    """An argparse type of numbers in a closed range: whole ones if both ends are."""
    whole = isinstance(low, int) and isinstance(high, int)

    def parse(text: str) -> float:
        try:
            value = int(text) if whole else float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            kind = "whole number" if whole else "number"
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a {kind} from {low:g} to {high:g}")
        return value

    return parse


def input_file(text: str) -> Path:
    """An argparse type of files to read: pipes and devices, on which reading may wait forever, are refused."""
    if os.path.exists(text) and not os.path.isfile(text) and not os.path.isdir(text):
        raise argparse.ArgumentTypeError(f"{text} is a pipe or a device; save its content to a file first")
    return Path(text)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``."""
    parser.add_argument("--device", default="auto", metavar="D", help=DEVICE_HELP)


def add_backend(parser: argparse.ArgumentParser) -> None:
    """Add ``--backend``."""
    parser.add_argument("--backend", default="torch", help="torch, or openvino on a CPU (default: torch)")


def refine_shares(text: str) -> tuple[float, ...]:
    """The value of ``--refine``."""
    try:
        return parse_refine(text)
    except DynaMaskError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def check_json(target: str | None) -> None:
    """Raise :class:`DynaMaskError` if ``--json`` names no file or a folder that does not exist, before the work."""
    if target is None or target == "-":
        return
    check_file(Path(target))
    if not Path(target).absolute().parent.is_dir():
        raise DynaMaskError(f"folder {Path(target).parent} of --json does not exist; create it or choose another")


def write_json(value: object, target: str | None) -> None:
    """Write JSON atomically to the file ``target``, or to stdout for "-"; do nothing without a target."""
    if target is None:
        return
    text = json.dumps(value, indent=1, allow_nan=False)
    if target == "-":
        print(text)
        return
    check_json(target)
    write_text(Path(target), text + "\n")


def replace_unencodable() -> None:
    """Let stdout and stderr print "?" for characters that their encoding lacks, instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def run_command(name: str, command: Callable[[], int | None], json_target: str | None = None) -> int:
    """Run a command and return its exit code.

    It is its own or 0, or 2 after one line on stderr that says what is wrong, or 130 after one that says that Ctrl-C
    ended it.

    Args:
        name: name of the program, at the start of the line.
        command: raises :class:`DynaMaskError` if the input is wrong. A message of a KeyboardInterrupt that it raises is
            printed.
        json_target: value of ``--json``, which is checked first.
    """
    replace_unencodable()
    warnings.showwarning = lambda message, *_, **__: print(f"{name}: warning: {message}", file=sys.stderr)
    try:
        check_json(json_target)
        code = command()
        sys.stdout.flush()
    except ReportedElsewhereError:
        return 2
    except KeyboardInterrupt as stop:
        print(f"{name}: {stop.args[0] if stop.args else 'interrupted; no file is half-written'}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of stdout has ended, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    except (DynaMaskError, OSError) as error:
        text = explain(error) if isinstance(error, OSError) else str(error)
        print(f"{name}: error: {' '.join(text.split())}", file=sys.stderr)
        return 2
    return code or 0


def print_line(text: str, target: str | None = None) -> None:
    """Print a line on stdout, or on stderr if ``--json -`` prints JSON on stdout."""
    print(text, file=sys.stderr if target == "-" else sys.stdout)


def add_data(
    parser: argparse.ArgumentParser,
    holdout: str = "only the pictures that `train --holdout M` holds out",
    several: bool = False,
) -> None:
    """Add ``--data``, ``--split``, ``--images``, ``--annotations``, and ``--holdout`` with this help.

    With ``several``, the flags that name data can be repeated, and their values are lists.
    """
    more: dict[str, Any] = {"action": "append", "default": []} if several else {}
    again = "; repeat it for several data sets" if several else ""
    parser.add_argument("--data", metavar="DATA", help=DATA_HELP + again, **more)
    parser.add_argument("--split", metavar="NAME", help="split of --data, if it has several")
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help=f"folder of pictures, with --annotations{again}", **more
    )
    annotations = f"COCO annotations, or their folder{again}"
    parser.add_argument("--annotations", type=input_file, metavar="JSON", help=annotations, **more)
    parser.add_argument("--holdout", type=number_in(2, MOST), metavar="M", help=holdout)


def open_selected_data(
    arguments: argparse.Namespace,
    class_names: Sequence[str] | None,
    training: bool = False,
    transforms: Transforms | None = None,
) -> tuple[Data, list[int]]:
    """Open the data set that the flags of :func:`add_data` name, and choose the pictures of it.

    Args:
        class_names: of the weights that will see the pictures; None takes the classes of the data set.
        training: choose the training side of ``--holdout``, and without ``--split`` the split "train"; otherwise the
            validation side, and the split "val".
        transforms: applied to every picture and its target.

    Returns:
        The data set and the indices of the chosen pictures.
    """
    from dynamask.data.sources import open_data

    dataset = open_data(
        arguments.data,
        arguments.images,
        arguments.annotations,
        class_names,
        transforms,
        split=arguments.split,
        default_split="train" if training else "val",
    )
    if arguments.holdout is None:
        return dataset, list(range(len(dataset)))
    return dataset, held_out(dataset, arguments.holdout, not training)


def check_folder(out: Path) -> None:
    """Raise :class:`DynaMaskError` if files cannot be written to the folder ``--out``; a missing one stays missing."""
    if out.exists() and not out.is_dir():
        raise DynaMaskError(f"--out {out} is a file; give a folder")
    try:
        known = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
        # Processes of one training may try at the same time, so what is missing is created elsewhere.
        with tempfile.TemporaryDirectory(dir=known) as trial:
            folder = Path(trial) if known == out else Path(trial) / out.absolute().relative_to(known)
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
    except (OSError, ValueError) as error:  # ValueError: a null character
        reason = system_reason(error) or str(error)
        raise DynaMaskError(f"--out {out} cannot be written to ({reason}); choose another folder") from error


def held_out(dataset: HasImageIds, modulus: int, validation: bool) -> list[int]:
    """Indices of one side of the published split; raises :class:`DynaMaskError` if it is empty."""
    from dynamask.data.instances import split_by_image_id

    if modulus < 2:
        raise DynaMaskError(f"--holdout is {modulus}; give a whole number of at least 2")
    indices = split_by_image_id(dataset, validation, modulus)
    if not indices:
        raise DynaMaskError(
            f"--holdout {modulus} leaves one side of the {len(dataset.image_ids)} pictures empty; give another number"
        )
    return indices


def print_summary(summary: dict[str, Any], target: str | None) -> None:
    """Print the figures of an evaluation."""
    print_line(f"{summary['images']} images, {summary['detections']} detections", target)
    for kind in ("bbox", "segm", "boundary"):
        print_line(f"  {kind:<9}{_figures(summary[kind])}", target)
    if "cityscapes" in summary:
        print_line(f"  cityscapes {_figures({key: summary['cityscapes'][key] for key in ('AP', 'AP50')})}", target)
        for name, values in summary["cityscapes"]["classes"].items():
            print_line(f"    {name:<12}{_figures(values)}", target)
    if summary.get("mean_macs_per_instance") is not None:
        shares = "  ".join(f"{size}: {share:.1%}" for size, share in summary.get("size_shares", {}).items())
        sizes = f"; sizes {shares}" if shares else ""
        print_line(f"  {summary['mean_macs_per_instance'] / 1e9:.4f} mean GMACs per instance{sizes}", target)
    for key in ("mean_mask_iou", "mean_boundary_iou", "border_share"):
        if summary.get(key) is not None:
            print_line(f"  {key} {summary[key]:.4f}", target)


def _figures(values: dict[str, float | None]) -> str:
    """Named figures in one line."""
    return "  ".join(f"{key} {'  -  ' if value is None else f'{value:.4f}'}" for key, value in values.items())
