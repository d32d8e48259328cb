"""SODAR's own figures, as data: Wang, Liew, Li, Chen and Feng, SODAR: Segmenting Objects by Dynamically Aggregating
Neighboring Mask Representations, Tables II–VIII.

AP in per cent, as printed. AP* is AP of models trained on COCO, judged on the 80 classes of COCO with the finer masks
of LVIS; AP*50 … AP*90 are the same at one IoU threshold. FPS are pictures per second on a V100. Table II is an image
without text in the source at hand; its text says what voting gains.
"""

from __future__ import annotations

from collections.abc import Sequence

from dynamask.reports.paper import AP_COLUMNS, PaperTable

STAR_COLUMNS = ("AP*", "AP*50", "AP*60", "AP*70", "AP*80", "AP*90")
STAR_IOUS = (0.5, 0.6, 0.7, 0.8, 0.9)
_ALL = (*AP_COLUMNS, *STAR_COLUMNS)
Figures = tuple[float | None, ...]

_SOLO = {
    "SOLO-R50": (35.8, 57.1, 37.8, 15.0, 37.8, 53.6, 37.0, 58.2, 51.8, 43.6, 32.2, 14.2, 12.9),
    "SODAR-R50": (37.9, 58.2, 40.9, 16.2, 41.5, 56.3, 40.0, 60.4, 54.9, 47.1, 36.4, 17.4, 11.4),
    "SOLO-R101": (37.1, 58.1, 39.5, 15.6, 41.0, 55.5, 38.6, 59.7, 53.5, 45.8, 34.3, 15.6, 11.5),
    "SODAR-R101": (38.6, 58.9, 41.7, 16.5, 42.6, 57.7, 41.2, 61.9, 55.8, 48.4, 37.7, 18.5, 10.2),
    "SOLOv2-R50": (37.7, 58.5, 40.2, 15.6, 41.3, 56.6, 40.0, 60.3, 54.4, 47.0, 36.5, 18.5, 16.4),
    "SODAR*-R50": (38.7, 59.2, 41.6, 17.1, 42.5, 57.2, 41.0, 60.9, 54.9, 47.9, 37.7, 19.9, 14.8),
    "SOLOv2-R101": (38.5, 59.1, 41.3, 17.1, 42.5, 56.8, 41.1, 61.9, 55.9, 48.0, 37.3, 18.8, 13.4),
    "SODAR*-R101": (39.4, 60.0, 42.3, 16.8, 43.6, 58.5, 42.3, 62.3, 56.9, 49.7, 38.9, 20.5, 12.2),
}
_INTERPOLATED = {
    "SODAR-R101, +cls": (39.1, 59.2, 42.1, 17.1, 43.6, 58.0, 41.6, 62.6, 57.0, 48.7, 38.0, 18.6, 10.0),
    "SODAR-R101, −mask": (38.8, 59.4, 41.8, 16.5, 42.8, 58.3, 41.1, 61.5, 56.0, 48.4, 37.6, 18.7, 10.9),
    "SODAR*-R101, +cls": (39.7, 60.6, 43.1, 17.9, 43.8, 58.8, 42.8, 63.3, 57.6, 50.3, 39.4, 20.7, 11.8),
    "SODAR*-R101, −mask": (39.2, 60.0, 42.2, 16.9, 43.3, 58.5, 42.2, 62.4, 56.5, 49.4, 38.8, 20.1, 12.7),
}
_BOTH = {
    "SODAR-R101, +c−m": (39.0, 59.5, 42.0, 16.9, 42.8, 58.4, 41.4, 61.6, 56.2, 48.4, 37.7, 18.8, 10.4),
    "SODAR*-R101, +c−m": (39.4, 60.1, 41.9, 17.0, 43.5, 58.5, 42.4, 62.5, 56.9, 50.2, 39.6, 20.7, 12.4),
}
_DEFORMABLE = {
    "SODAR-R101, −mask, deformable": (39.1, 59.6, 41.9, 16.6, 43.2, 58.6, 41.5, 62.4, 57.1, 48.3, 37.7, 18.9, 10.2),
    "SODAR-R101, +cls, deformable": (39.5, 59.2, 42.4, 17.2, 43.8, 59.0, 42.5, 63.6, 56.8, 49.4, 39.1, 20.2, 9.0),
    "SODAR*-R101, −mask, deformable": (39.6, 60.1, 42.6, 17.4, 43.3, 59.2, 42.5, 62.9, 56.4, 49.6, 39.2, 20.5, 11.8),
    "SODAR*-R101, +cls, deformable": (40.0, 60.3, 43.4, 18.4, 43.6, 59.1, 43.4, 63.6, 57.8, 50.3, 39.9, 21.3, 10.7),
}
_DECOUPLED = (37.9, 58.9, 40.6, 16.4, 42.1, 56.3, 39.6, 60.5, 54.5, 46.5, 35.6, 16.7, 10.6)
_AGG_D = _SOLO["SODAR-R101"][:-1]
_ABLATIONS = {
    "Baseline": _SOLO["SOLO-R101"][:-1],
    "agg-D": _AGG_D,
    "agg-S": (37.5, 57.4, 40.4, 15.7, 41.9, 56.4, 39.7, 61.3, 54.9, 47.4, 36.1, 16.9),
    "no-neighbor": (37.4, 57.1, 40.9, 15.5, 41.8, 56.2, 39.9, 61.5, 54.5, 47.4, 36.2, 16.7),
    "N-2-col": (38.0, 58.3, 41.1, 16.0, 42.0, 57.5, 40.6, 61.6, 55.1, 48.1, 37.6, 17.9),
    "N-2-row": (38.1, 58.3, 41.0, 16.2, 42.1, 57.3, 40.7, 61.6, 55.4, 47.9, 37.5, 17.9),
    "N-4": _AGG_D,
    "N-8": (38.5, 58.5, 42.3, 16.2, 42.4, 57.9, 41.2, 61.8, 55.7, 48.2, 37.6, 18.4),
    "multi-level-context-w": _AGG_D,
    "multi-level-context-w/o": (38.2, 58.3, 41.1, 16.0, 42.3, 57.4, 40.7, 61.8, 55.0, 48.1, 37.5, 18.1),
    "multi-level-context-only": (34.4, 54.0, 37.1, 13.8, 39.7, 50.6, 35.3, 54.2, 49.6, 42.4, 31.4, 14.5),
    "conv-layer-1": (38.1, 58.2, 41.2, 16.1, 42.1, 57.5, 40.7, 61.1, 55.6, 47.8, 37.1, 18.1),
    "conv-layer-2": (38.4, 58.8, 41.4, 15.7, 42.4, 57.6, 41.0, 61.3, 55.3, 48.0, 37.1, 19.3),
    "conv-layer-3": _AGG_D,
    "conv-layer-4": (38.4, 59.0, 41.0, 16.1, 42.3, 57.9, 41.0, 61.5, 55.5, 47.7, 37.0, 19.2),
    "conv-kernel-1x1": (38.2, 57.9, 41.6, 16.0, 42.2, 57.7, 40.5, 61.3, 55.8, 47.3, 37.0, 18.0),
    "conv-kernel-3x3": _AGG_D,
    "two-stage-loss": (37.2, 57.1, 40.3, 15.5, 41.2, 56.7, 38.8, 60.4, 54.5, 46.9, 38.9, 16.5),
}
_TEST_DEV = {
    "MR-CNN†": (38.2, 61.3, 40.9, 19.5, 40.4, 53.3, 9.1, "6x"),
    "MaskLab+": (37.3, 59.8, 39.6, 16.9, 39.9, 53.5, None, None),
    "YOLACT": (31.2, 50.6, 32.8, 12.1, 33.3, 47.1, 23.4, "4x"),
    "PolarMask": (32.1, 53.7, 33.1, 14.7, 33.8, 45.3, 12.3, "2x"),
    "MEInst": (33.9, 56.2, 35.4, 19.8, 36.1, 42.3, None, "3x"),
    "TensorMask": (37.1, 59.3, 39.4, 17.4, 39.2, 51.6, 2.6, "6x"),
    "BlendMask": (38.4, 60.7, 41.3, 18.2, 41.5, 53.3, 11.0, "3x"),
    "CondInst†": (39.3, 60.6, 42.3, 21.2, 42.1, 51.8, 10.3, "6x"),
    "CenterMask†": (39.9, 59.7, 43.7, 21.7, 42.9, 51.8, 14.8, "6x"),
    "SOLO": (37.8, 59.5, 40.4, 16.2, 40.6, 54.2, 11.6, "6x"),
    "SOLOv2": (39.7, 60.7, 42.9, 17.1, 42.9, 57.5, 13.6, "6x"),
    "SOLO+grid": (38.0, 59.3, 40.8, 16.5, 40.7, 54.0, 10.1, "6x"),
    "SOLOv2+grid": (39.8, 60.4, 43.0, 17.1, 43.0, 57.4, 13.1, "6x"),
    "TensorMask+agg": (38.7, 60.5, 40.8, 18.0, 40.1, 53.4, 2.4, "6x"),
    "CondInst+agg": (40.4, 61.2, 43.1, 21.6, 43.6, 53.0, 9.2, "6x"),
    "SODAR": (40.0, 60.4, 43.5, 17.7, 43.5, 57.4, 10.6, "6x"),
    "SODAR*": (41.0, 61.6, 44.4, 18.4, 44.4, 59.0, 12.7, "6x"),
}


def _rows(figures: dict[str, Sequence[float | str | None]]) -> tuple[tuple[str, tuple[float | str | None, ...]], ...]:
    return tuple((name, tuple(values)) for name, values in figures.items())


_VAL = "COCO val2017; AP* with LVIS' masks of COCO's classes"
_R101 = "COCO val2017, ResNet-101"
PAPER: dict[str, PaperTable] = {
    "sodar-table2": PaperTable(
        "Tab. II", "what mask voting gains, as the text says it (the table itself is an image)",
        "COCO val2017, SOLO-R50", "COCO val2017, SOLO-R50", ("AP gained",),
        _rows({"average": (0.2,), "weighted, at most": (0.3,)}),
    ),
    "sodar-table3": PaperTable(
        "Tab. III", "SOLO and SOLOv2 without and with the aggregation (SODAR* is SODAR on SOLOv2)", _VAL,
        "COCO val2017, R50", (*_ALL, "FPS"), _rows(_SOLO),
    ),
    "sodar-table4": PaperTable(
        "Tab. IV", "mask interpolation", f"{_R101}; AP* with LVIS' masks of COCO's classes", _R101, (*_ALL, "FPS"),
        _rows({k: v for k, v in _SOLO.items() if "R101" in k} | _INTERPOLATED | {"decoupled SOLO": _DECOUPLED} | _BOTH),
    ),
    "sodar-table5": PaperTable(
        "Tab. V", "deformable neighbours", f"{_R101}; AP* with LVIS' masks of COCO's classes", _R101, (*_ALL, "FPS"),
        _rows(_INTERPOLATED | _DEFORMABLE),
    ),
    "sodar-table6": PaperTable(
        "Tab. VI", "ablations; the caption and the figures are of R101, the text speaks of R50",
        f"{_R101}; AP* with LVIS' masks of COCO's classes", "COCO val2017, SOLO-R101", _ALL, _rows(_ABLATIONS),
    ),
    "sodar-table7": PaperTable(
        "Tab. VII", "computation and parameters, SOLO on ResNet-101", "SOLO-R101", "SOLO-R101",
        ("GFLOPs", "M parameters"),
        _rows({
            "solo": (422.8, 55.1), "sodar": (428.3, 55.4), "sodar_cls": (433.8, 55.4), "sodar_mask": (390.5, 54.6),
            "sodar_cls_deformable": (435.8, 55.7), "sodar_mask_deformable": (391.1, 54.9),
        }),
    ),
    "sodar-table8": PaperTable(
        "Tab. VIII", "other methods († trained again by the authors); SODAR with +cls and deformable neighbours",
        "COCO test-dev, ResNet-101", "COCO test-dev, R101", (*AP_COLUMNS, "FPS", "schedule"), _rows(_TEST_DEV),
    ),
}  # fmt: skip
"""SODAR's tables by the name of the report that makes ours."""


def star(table: PaperTable, row: str, column: str) -> float | None:
    """A figure of AP* or AP in 0–1; None where the row or the column is missing."""
    value = table.figure(row, column)
    return round(value / 100, 4) if isinstance(value, int | float) else None


def gains(first: str, second: str) -> list[float]:
    """What the paper's Table III gains from one row to another at AP*50 … AP*90, in 0–1."""
    table = PAPER["sodar-table3"]
    pairs = [(table.figure(first, c), table.figure(second, c)) for c in STAR_COLUMNS[1:]]
    return [round((a - b) / 100, 4) for a, b in pairs]
