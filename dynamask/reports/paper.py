"""The paper's own figures, as data: Li et al., DynaMask, CVPR 2023 (arXiv 2303.07868), tables 1–8 and supplement S1–S3.

AP in per cent and cost in giga multiply–accumulates ("G"), as printed there; FPS are pictures per second. Figures of
other methods are the paper's quotations. :func:`fraction` gives the AP of a row in the unit of everything else here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

AP_COLUMNS = ("AP", "AP50", "AP75", "APS", "APM", "APL")
SHARES = ("tiny", "small", "medium", "large")
"""Columns of the shares at 14, 28, 56 and 112."""


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper.

    Attributes:
        number: under which the paper prints it.
        about: its caption, in short.
        setting: data, backbone and schedule behind its figures.
        beside: the setting of the rows that stand beside ours, for the head of their column.
        columns: names of its figures.
        rows: (name, figures) from top to bottom; None where the paper has a dash.
    """

    number: str
    about: str
    setting: str
    beside: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[float | str | None, ...]], ...]

    def figure(self, row: str, column: str) -> float | str | None:
        """One figure as printed; None for a dash, an unknown row or a column that the table lacks."""
        found = dict(self.rows).get(row)
        return None if found is None or column not in self.columns else found[self.columns.index(column)]


_NAMES = {"size": "size-based", "panet": "PANet", "bifpn": "BiFPN", "nasfpn": "NAS-FPN"}


def row_name(row: str) -> str:
    """A row's name in words."""
    if row.startswith(("fcn:", "fixed:")):
        method, size = row.split(":")
        return f"{'Mask R-CNN' if method == 'fcn' else 'DynaMask'}, {size}×{size}"
    return _NAMES.get(row, row)


def fraction(table: PaperTable, row: str, column: str = "AP") -> float | None:
    """An AP of the paper in 0–1; None where there is none."""
    value = table.figure(row, column)
    return round(value / 100, 4) if isinstance(value, int | float) else None


def _plain(*rows: Sequence[float | str | None]) -> tuple[tuple[str, tuple[float | str | None, ...]], ...]:
    """Rows whose first entry is the name."""
    return tuple((str(name), tuple(values)) for name, *values in rows)


_R50 = "COCO val2017, ResNet-50-FPN, 1× schedule", "COCO val2017, R50-FPN 1×"

PAPER: dict[str, PaperTable] = {
    "table1": PaperTable(
        "Tab. 1", "mask AP and cost at different mask resolutions", *_R50, ("AP", "G"),
        _plain(
            ("fcn:14", 32.9, 0.2), ("fcn:28", 34.7, 0.5), ("fcn:56", 33.8, 2.0), ("fcn:112", 32.5, 8.0),
            ("fixed:14", 32.9, 0.2), ("fixed:28", 36.1, 0.6), ("fixed:56", 37.1, 1.0), ("fixed:112", 37.6, 1.4),
        ),
    ),
    "table2": PaperTable(
        "Tab. 2", "comparison with Mask R-CNN", "COCO val2017, backbone and schedule in the row's name",
        _R50[1], AP_COLUMNS,
        _plain(
            ("Mask R-CNN R50 1×", 34.7, 55.7, 37.2, 18.3, 37.4, 47.2),
            ("DynaMask R50 1×", 37.6, 57.4, 40.5, 20.7, 40.4, 50.3),
            ("Mask R-CNN R50 2×", 35.4, 56.4, 37.9, 19.1, 38.6, 48.4),
            ("DynaMask R50 2×", 38.2, 58.1, 41.5, 20.5, 40.8, 52.7),
            ("Mask R-CNN R101 1×", 36.1, 57.5, 38.6, 18.8, 39.7, 49.5),
            ("DynaMask R101 1×", 38.7, 58.8, 41.8, 20.9, 41.8, 52.4),
            ("Mask R-CNN R101 2×", 36.6, 57.9, 39.1, 19.2, 40.2, 50.5),
            ("DynaMask R101 2×", 39.0, 59.1, 42.2, 20.9, 42.1, 53.3),
        ),
    ),
    "table3": PaperTable(
        "Tab. 3", "comparison with other methods († trained at several scales)",
        "COCO test-dev2017, backbone and schedule in the row's name", "COCO test-dev2017", AP_COLUMNS,
        _plain(
            ("MEInst R101 3×", 33.9, 56.2, 35.4, 19.8, 36.1, 42.3),
            ("Mask R-CNN R101 3×", 38.5, 60.0, 41.6, 19.2, 41.6, 55.8),
            ("BMask R-CNN R101 1×", 37.7, 59.3, 40.6, 16.8, 39.9, 54.6),
            ("TensorMask R101 6×", 37.1, 59.3, 39.4, 17.4, 39.1, 51.6),
            ("Mask Scoring R101 18e", 38.3, 58.8, 41.5, 17.8, 40.4, 54.4),
            ("CondInst R101 3×", 39.1, 60.9, 42.0, 21.5, 41.7, 50.9),
            ("BlendMask R101 3×", 38.4, 60.7, 41.3, 18.2, 41.5, 53.3),
            ("PointRend X101 3×", 41.4, 63.3, 44.8, 24.2, 43.9, 53.2),
            ("SOLOv2 R101 6×", 39.7, 60.7, 42.9, 17.3, 42.9, 57.4),
            ("HTC R101 20e", 39.7, 61.8, 43.1, 21.0, 42.2, 53.5),
            ("DCT-Mask† R101 3×", 40.1, 61.2, 43.6, 22.7, 42.7, 51.8),
            ("RefineMask R101 3×", 39.4, None, None, None, None, None),
            ("Mask Transfiner† R101 3×", 40.7, None, None, 23.1, 42.8, 53.8),
            ("QueryInst† R101 3×", 41.7, 64.4, 45.3, 24.2, 43.9, 53.9),
            ("DynaMask R101 3×", 39.6, 61.4, 42.9, 21.2, 42.4, 53.2),
            ("DynaMask† R101 3×", 41.3, 62.5, 45.2, 22.8, 43.4, 54.0),
            ("DynaMask† X101 3×", 42.0, 62.9, 46.3, 23.4, 44.0, 54.8),
        ),
    ),
    "table4": PaperTable(
        "Tab. 4", "Cityscapes", "Cityscapes val, ResNet-50-FPN", "Cityscapes val, R50-FPN", ("AP", "APS", "APM", "APL"),
        _plain(
            ("Mask R-CNN", 33.8, 12.0, 31.5, 51.8),
            ("PointRend", 35.8, None, None, None),
            ("BMask R-CNN", 35.8, None, None, None),
            ("RefineMask", 37.6, 14.6, 34.0, 58.1),
            ("DynaMask", 38.0, 14.8, 35.1, 57.6),
        ),
    ),
    "table5": PaperTable(
        "Tab. 5", "influence of the budget constraint; the row's name gives C_t in G, and λ2", *_R50,
        ("G", "saved", "AP"),
        _plain(
            ("1.0, 0.3", 1.27, "9 %", 37.6), ("1.0, 0.4", 1.13, "19 %", 37.6), ("1.0, 0.5", 1.06, "24 %", 37.5),
            ("0.8, 0.4", 0.92, "34 %", 37.4), ("0.6, 0.4", 0.83, "41 %", 37.2), ("0.4, 0.4", 0.64, "54 %", 36.8),
        ),
    ),
    "table6": PaperTable(
        "Tab. 6", "speed (DCT-Mask† trained at several scales)", "COCO val2017, TITAN RTX, pictures of 800 × 1333",
        "COCO val2017, TITAN RTX",         ("AP", "G", "FPS"),
        _plain(
            ("Mask R-CNN", 34.7, 0.5, 12.4), ("PointRend", 35.6, 0.9, 9.4), ("DCT-Mask†", 36.5, 0.5, 11.8),
            ("HTC", 37.4, None, 3.9), ("DynaMask", 37.6, 1.4, 8.3), ("DynaMask (C_t = 0.4)", 36.8, 0.64, 11.2),
        ),
    ),
    "table7": PaperTable(
        "Tab. 7", "one mask size for all", *_R50, ("G", *AP_COLUMNS),
        _plain(
            ("fixed:14", 0.23, 32.9, 55.3, 34.4, 19.3, 35.8, 43.6),
            ("fixed:28", 0.62, 36.1, 57.1, 38.7, 20.4, 39.2, 48.2),
            ("fixed:56", 1.01, 37.1, 57.3, 40.0, 20.5, 40.0, 49.7),
            ("fixed:112", 1.40, 37.6, 57.4, 40.5, 20.7, 40.4, 50.3),
        ),
    ),
    "table8": PaperTable(
        "Tab. 8", "comparison with size-based sizes", *_R50, ("G", "AP", *SHARES),
        _plain(
            ("fixed:28", 0.62, 36.1, "0 %", "100 %", "0 %", "0 %"),
            ("size", 0.56, 35.9, "47 %", "32 %", "14 %", "8 %"),
            ("DynaMask (C_t = 0.4)", 0.64, 36.8, "35 %", "34 %", "21 %", "10 %"),
            ("fixed:112", 1.4, 37.6, "0 %", "0 %", "0 %", "100 %"),
        ),
    ),
    "tableS1": PaperTable(
        "Tab. S1 (printed as Tab. 9)", "distribution of the mask sizes", *_R50, (*SHARES, "G", "AP"),
        _plain(
            ("size", "47 %", "32 %", "14 %", "8 %", 0.56, 35.9),
            ("fixed:112", "0 %", "0 %", "0 %", "100 %", 1.4, 37.6),
            ("DynaMask (19 % ↓)", "5 %", "13 %", "25 %", "56 %", 1.13, 37.6),
            ("DynaMask (54 % ↓)", "35 %", "34 %", "21 %", "10 %", 0.64, 36.8),
        ),
    ),
    "tableS2": PaperTable(
        "Tab. S2 (printed as Tab. 10)", "LVIS", "LVIS val, ResNet-50-FPN", "LVIS val, R50-FPN",
        ("AP", "APr", "APc", "APf"),
        _plain(("Mask R-CNN", 22.1, 10.1, 21.7, 31.7), ("DynaMask", 25.7, 13.9, 24.4, 32.0)),
    ),
    "tableS3": PaperTable(
        "Tab. S3 (printed as Tab. 11)", "other pyramids for the mask branch", *_R50, AP_COLUMNS,
        _plain(
            ("panet", 35.9, 56.8, 38.3, 19.4, 39.2, 49.0), ("bifpn", 36.4, 57.2, 39.0, 19.2, 39.8, 49.5),
            ("nasfpn", 36.0, 56.9, 38.7, 18.9, 38.5, 49.9), ("DynaMask", 37.6, 57.4, 40.5, 20.7, 40.4, 50.3),
        ),
    ),
}  # fmt: skip
"""The paper's tables by the name of the report that makes ours."""

FIGURES = {
    "figure5": "Fig. 5 of the paper shows edges that were predicted at the four sizes in photographs of COCO, without "
    "figures: the edge loss, it says, varies greatly between the sizes, and the mask loss hardly.",
    "figure7": "Fig. 7 of the paper shows photographs of COCO, large masks in red, medium ones in blue, small ones in "
    "green and tiny ones in yellow.",
    "figure8": "Fig. 8 of the paper shows the same of COCO: giraffes get large masks, books small ones.",
}
"""What the paper's figures show, by the name of the report that makes ours."""
