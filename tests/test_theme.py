"""The notebooks' look is legible on a white and on a dark page."""

import numpy as np
import plotly.graph_objects as go

from dynamask.structures import MASK_SIZES
from dynamask.viz import theme
from dynamask.viz.charts import macs_against_budget, size_shares
from dynamask.viz.overlay import hex_to_rgb


def luminance(colour: str) -> float:
    """WCAG relative luminance of `#RRGGBB`."""
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in np.array(hex_to_rgb(colour)) / 255]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def contrast(a: str, b: str) -> float:
    """WCAG contrast ratio of two colours."""
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_measured_as_the_standard_has_it():
    assert round(contrast("#000000", "#FFFFFF"), 2) == 21.0 and round(contrast("#777777", "#FFFFFF"), 2) == 4.48


def test_text_and_accent_stand_out_from_both_pages():
    for page in (theme.LIGHT_PAGE, theme.DARK_PAGE):
        assert contrast(theme.INK, page) >= 4.2
        assert contrast(theme.ACCENT, page) >= 3.6
    best = max(min(contrast(f"#{g:02X}{g:02X}{g:02X}", page) for page in (theme.LIGHT_PAGE, theme.DARK_PAGE))
               for g in range(256))  # fmt: skip
    assert best < 4.5, "no grey reaches 4.5 on both: the docstring says so"


def test_template_colours_all_text_and_paints_no_background():
    layout = theme.TEMPLATE.layout
    assert layout.paper_bgcolor == layout.plot_bgcolor == "rgba(0, 0, 0, 0)"
    for text in (layout.font, layout.title.font, layout.xaxis.tickfont, layout.yaxis.title.font, layout.legend.font):
        assert text.color == theme.INK
    assert theme.figure("a", 300, showlegend=False).layout.template == theme.TEMPLATE


def test_dress_turns_black_into_the_ink():
    drawn = theme.dress(macs_against_budget([10], [10, 20, 30, 40], budget=2e-8))
    assert drawn.layout.template == theme.TEMPLATE
    assert "#111111" not in drawn.to_json() and drawn.layout.shapes[-1].line.color == theme.ACCENT
    assert "#333333" not in theme.dress(size_shares([14])).to_json()
    empty = theme.dress(go.Figure())
    assert empty.layout.template == theme.TEMPLATE


def test_sizes_differ_without_colour():
    for looks in (
        [theme.size_bar(size)["pattern"]["shape"] for size in MASK_SIZES],
        [theme.size_dot(size)["symbol"] for size in MASK_SIZES],
        [theme.size_line(size)["dash"] for size in MASK_SIZES],
    ):
        assert len(set(looks)) == 4
    assert all(theme.size_bar(size)["line"]["color"] == theme.INK for size in MASK_SIZES)
