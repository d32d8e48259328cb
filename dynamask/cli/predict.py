"""``dynamask predict``: overlays and COCO results of images."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamask.cli.common import (
    add_backend,
    add_choice,
    add_device,
    add_mask_nms,
    add_refine,
    add_rescore,
    add_score,
    check_folder,
    input_file,
    write_json,
)
from dynamask.cli.image_sources import PictureFile, find_pictures, read_json
from dynamask.files import explain, replacing
from dynamask.structures import DynaMaskError, first_sentence

if TYPE_CHECKING:
    from dynamask.predict import Prediction

NO_FILE_CAN_BE_WRITTEN = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}
"""Errors in writing the results of one picture after which those of the next could not be written either."""
LISTED = 3
"""Number of pictures that the last line names if they could not be used."""


def add(commands: Any) -> None:
    """Add the command to the subparsers."""
    parser = commands.add_parser(
        "predict",
        help="masks for pictures",
        description="Overlays and COCO results of pictures. The results of each are written when it is done; pictures "
        "that cannot be used are named at the end, with exit code 2.",
    )
    parser.add_argument("--weights", default="things", help="bundled name or .safetensors file (default: things)")
    parser.add_argument(
        "--image",
        nargs="+",
        required=True,
        metavar="P",
        help="pictures: files, folders with all pictures below them, patterns ('photos/**/*.jpg'), and @LIST.txt with "
        "one of these in each line",
    )
    add_choice(parser, "learned, size, fixed:S")
    add_score(parser, "score threshold, 0-1 (default: that of the weights)")
    add_rescore(parser)
    add_mask_nms(parser)
    add_refine(parser)
    parser.add_argument(
        "--detections",
        type=input_file,
        metavar="RESULTS.json",
        help="COCO results of another detector: masks in their boxes instead of detecting; for several pictures each "
        "result names its file_name",
    )
    parser.add_argument(
        "--image-ids",
        type=input_file,
        metavar="JSON",
        help="COCO annotations whose images give the image_id of the results by file_name (default: 1, 2, ...)",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for NAME.png and NAME.json")
    parser.add_argument("--skip-existing", action="store_true", help="leave out pictures whose results exist")
    add_device(parser)
    add_backend(parser)
    parser.set_defaults(run=_predict)


def _predict(arguments: argparse.Namespace) -> None:
    pictures = find_pictures(arguments.image, arguments.out, arguments.image_ids)
    given = None if arguments.detections is None else _read_detections(arguments.detections, pictures)
    check_folder(arguments.out)
    left = pictures
    if arguments.skip_existing:
        left = [one for one in pictures if not os.path.isfile(arguments.out / f"{one.name}.json")]
        print(f"{len(pictures) - len(left)} of {len(pictures)} pictures have results in {arguments.out}")
    if left:
        _predict_each(left, _predictor(arguments, given), arguments.out)


def _predictor(
    arguments: argparse.Namespace, given: dict[str, list[dict[str, Any]]] | None
) -> Callable[[PictureFile], Prediction]:
    """A function that predicts one picture; what no picture can be predicted with is refused here."""
    from dynamask.engine.memory import keep_freed_memory
    from dynamask.predict import load

    keep_freed_memory()
    predictor = load(arguments.weights, arguments.device, refine=arguments.refine, backend=arguments.backend)
    predictor.check_choice(arguments.policy, arguments.budget)
    predictor.check_objects(detections=given, mask_nms=arguments.mask_nms)
    options = {name: getattr(arguments, name) for name in ("policy", "budget", "score", "mask_nms", "rescore")}

    def predict(picture: PictureFile) -> Prediction:
        detections = None if given is None else given[picture.path.name]
        return predictor(picture.path, detections=detections, **options)

    return predict


def _predict_each(pictures: Sequence[PictureFile], predict: Callable[[PictureFile], Prediction], out: Path) -> None:
    """Predict pictures one after the other and write the results of each when it is done.

    Raises:
        DynaMaskError: pictures that could not be used, after the others are written.
        KeyboardInterrupt: with what to do next.
    """
    from tqdm import tqdm

    failed: list[str] = []
    bar = tqdm(total=len(pictures), unit="picture", disable=not sys.stderr.isatty(), dynamic_ncols=True)
    with bar:
        for number, picture in enumerate(pictures, start=1):
            place = f"[{number}/{len(pictures)}] " if len(pictures) > 1 else ""
            try:
                prediction = predict(picture)
                _write(prediction, picture, out)
                bar.write(place + _table(picture.path, prediction), file=sys.stdout)
                del prediction  # before the next picture needs memory
            except KeyboardInterrupt:
                left = len(pictures) - number + 1
                message = f"interrupted; {left} of {len(pictures)} pictures are left"
                raise KeyboardInterrupt(f"{message}, and --skip-existing continues with them") from None
            except BrokenPipeError:
                raise
            except (DynaMaskError, OSError, RuntimeError, MemoryError) as error:
                if _error_number(error) in NO_FILE_CAN_BE_WRITTEN:
                    raise
                failed.append(_reason(picture, error))
                if len(pictures) > 1:
                    bar.write(f"{place}{picture.path}: left out: {failed[-1]}", file=sys.stdout)
            bar.update()
    if failed:
        raise DynaMaskError(failed[0] if len(pictures) == 1 else _summary(failed, len(pictures), out))


def _write(prediction: Prediction, picture: PictureFile, out: Path) -> None:
    """Write the overlay, then the results, so that there are results only where there is an overlay."""
    from PIL import Image

    from dynamask.viz.overlay import draw_prediction

    overlay, results = draw_prediction(prediction), prediction.to_coco(picture.image_id)
    with replacing(out / f"{picture.name}.png") as stream:
        Image.fromarray(overlay).save(stream, format="PNG")
    write_json(results, str(out / f"{picture.name}.json"))


def _error_number(error: BaseException | None) -> int | None:
    """The errno of the OSError that an error is or was caused by."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__
    return None if error is None else error.errno


def _reason(picture: PictureFile, error: Exception) -> str:
    """Why a picture could not be used."""
    if isinstance(error, DynaMaskError):
        return str(error)
    if isinstance(error, OSError):
        return explain(error)
    return f"{picture.path} cannot be processed ({type(error).__name__}: {first_sentence(error)})"


def _summary(failed: Sequence[str], count: int, out: Path) -> str:
    """The last line after some of several pictures could not be used."""
    more = f"; and {len(failed) - LISTED} more, listed above" if len(failed) > LISTED else ""
    rest = f", the results of the others are in {out}" if len(failed) < count else ""
    return f"{len(failed)} of {count} pictures could not be used{rest}: {'; '.join(failed[:LISTED])}{more}"


def _read_detections(path: Path, pictures: Sequence[PictureFile]) -> dict[str, list[dict[str, Any]]]:
    """COCO results by the file name of their picture; results of other pictures are left out."""
    results = read_json(path, "detections")
    if not isinstance(results, list) or not all(isinstance(result, dict) for result in results):
        raise DynaMaskError(f"detections {path} are not COCO results; give a JSON list of objects with bbox and score")
    names = [picture.path.name for picture in pictures]
    if len(names) > 1 and not all(isinstance(result.get("file_name"), str) for result in results):
        raise DynaMaskError(f"a result in {path} names no file_name; add it, or predict one picture at a time")
    given: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for result in results:
        name = result.get("file_name", names[0])
        if isinstance(name, str) and name in given:
            given[name].append(result)
    if results and not any(given.values()):
        raise DynaMaskError(f"no result in {path} is of these pictures; give the file_name of a picture to its results")
    return given


def _table(path: Path, prediction: Prediction) -> str:
    """One line for the image and one for each instance."""
    mean = f", mean {prediction.macs.double().mean() / 1e9:.4f} GMACs an instance" if len(prediction) else ""
    lines = [f"{path}: {len(prediction)} instances{mean}"]
    for i, label in enumerate(prediction.labels.tolist()):
        if prediction.cells is not None:
            origin = f"level {prediction.cells.level[i]} cell {prediction.cells.cell[i]:>4}"
        else:
            origin = f"mask {prediction.mask_size[i]:>3}"
        box = " ".join(f"{value:.0f}" for value in prediction.boxes[i].tolist())
        lines.append(
            f"  {prediction.class_names[label]:<16} {prediction.scores[i]:.2f}  {origin}  "
            f"{prediction.macs[i] / 1e9:.4f} GMACs  box {box}"
        )
    return "\n".join(lines)
