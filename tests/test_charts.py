"""Charts show the numbers they are given, in a style that is legible on white and on dark pages."""

import json

import numpy as np
import pytest

from dynamask.structures import MASK_SIZES
from dynamask.viz import charts, style


def test_contrast_is_that_of_wcag():
    assert round(style.contrast("#000000", "#FFFFFF"), 2) == 21.0
    assert round(style.contrast("#777777", "#FFFFFF"), 2) == 4.48
    assert style.contrast_colour("#FEE90C") == (0, 0, 0) and style.contrast_colour("#8E0B2B") == (255, 255, 255)


@pytest.mark.parametrize("page", [style.LIGHT_PAGE, style.DARK_PAGE])
def test_text_accent_and_series_contrast_with_both_pages(page):
    assert style.contrast(style.INK, page) >= 4.2 and style.contrast(style.ACCENT, page) >= 3.6
    policies = [look.colour for name, look in style.POLICY_STYLES.items() if not name.startswith("fixed:")]
    assert min(style.contrast(colour, page) for colour in (*style.SERIES_COLOURS, *policies)) >= 3


def test_no_grey_reaches_the_usual_contrast_on_both_pages():
    pages = (style.LIGHT_PAGE, style.DARK_PAGE)
    assert max(min(style.contrast(f"#{g:02X}{g:02X}{g:02X}", page) for page in pages) for g in range(256)) < 4.35


def test_figures_have_no_background_and_one_text_colour():
    layout = charts.figure("a", 300, showlegend=False).layout
    template = layout.template.layout
    assert template.paper_bgcolor == template.plot_bgcolor == "rgba(0, 0, 0, 0)"
    assert template.font.color == style.INK and layout.height == 300 and layout.showlegend is False
    page = charts.page_html(charts.figure("a"), plotlyjs=False)
    assert style.PAGE_INK in page and "<html" not in page


def test_mask_sizes_are_distinguished_by_more_than_colour():
    assert style.SIZE_COLOURS == {14: "#FEE90C", 28: "#66C2A5", 56: "#1F5FBF", 112: "#8E0B2B"}
    for look in (style.SIZE_PATTERNS, style.SIZE_SYMBOLS, style.SIZE_DASHES, style.SIZE_OUTLINES):
        assert list(look) == list(MASK_SIZES) and len(set(look.values())) == 4


@pytest.mark.parametrize("label", range(1, 40))
def test_class_colours_allow_readable_labels(label):
    red, green, blue = style.contrast_colour(style.class_colour(label))
    assert style.contrast(style.class_colour(label), f"#{red:02X}{green:02X}{blue:02X}") >= 4.5


def test_class_distribution_orders_and_normalises():
    figure = charts.class_distribution(["giraffe"] * 2 + ["book"] * 4, [112, 56, 14, 14, 14, 28])
    assert list(figure.data[0].y) == ["giraffe", "book"] and figure.layout.yaxis.autorange == "reversed"
    shares = [list(bar.x) for bar in figure.data]
    assert [sum(column) for column in zip(*shares)] == pytest.approx([1.0, 1.0])
    assert shares[0] == pytest.approx([0.0, 0.75]) and shares[3] == pytest.approx([0.5, 0.0])
    assert [bar.marker.color for bar in figure.data] == list(style.SIZE_COLOURS.values())


def test_class_distribution_checks_its_input():
    assert list(charts.class_distribution([], []).data[0].y) == []
    for classes, sizes in (["a", "a"], [14]), (["a"], [15]):
        with pytest.raises(ValueError):
            charts.class_distribution(classes, sizes)


def test_bars_of_series_by_category():
    drawn = charts.bar_chart({"28×28": {"a": 0.5, "b": 0.25}, "other": {"b": 1.0}}, axis="cost", number_format=".1f")
    assert [list(bar.y) for bar in drawn.data] == [[0.5, 0.25], [1.0]] and list(drawn.data[0].text) == [
        "0.5",
        "0.2",
    ]
    assert drawn.data[0].marker.color == style.SIZE_COLOURS[28] and drawn.data[1].marker.color in style.SERIES_COLOURS
    assert drawn.layout.yaxis.title.text == "cost" and drawn.layout.barmode == "group"
    stacked = charts.bar_chart({"a": {"x": 1}}, stacked=True, horizontal=True, number_format=".0%")
    assert list(stacked.data[0].x) == [1] and stacked.layout.barmode == "stack" and not stacked.data[0].text
    assert stacked.layout.xaxis.tickformat == ".0%"


def test_curves_have_bands_bars_and_one_legend_entry():
    looks = style.POLICY_STYLES["budget"], style.POLICY_STYLES["fixed:28"]
    band = charts.Series("switch", [1, 2], [0.5, 0.6], [0.4, None], [0.6, None], looks[0], interval="band")
    point = charts.Series("all at 28", [1], [0.7], [0.6], [0.9], looks[1])
    bars = charts.Series("line", [1, 2], [0.1, None], [0.0, None], [0.3, None])
    drawn = charts.curve_chart({"m": [band, point], "n": [band, bars]}, "t", "GMACs", zero_line=True)
    shaded, line, marker, _, _, last = drawn.data
    assert list(shaded.x) == [1, 1] and list(shaded.y) == [0.6, 0.4]  # the point without an interval has no band
    assert line.line.color == style.POLICY_STYLES["budget"].colour and "0.4000 to 0.6000" in line.customdata[0]
    assert marker.mode == "markers" and marker.marker.color == style.SIZE_COLOURS[28]
    assert (marker.error_y.array[0], marker.error_y.arrayminus[0]) == pytest.approx((0.2, 0.1))
    assert list(last.error_y.array) == pytest.approx([0.2, 0.0])
    assert [trace.showlegend for trace in drawn.data] == [False, True, True, False, False, True]
    assert len(drawn.layout.shapes) == 2


def test_areas_stack_the_shares_of_the_sizes():
    drawn = charts.panel_figure(["a", "b"])
    charts.add_size_areas(drawn, [0, 1], [[1, 0, 0, 0], [0, 0.5, 0.5, 0]], row=1, col=2, showlegend=False)
    assert np.sum([trace.y for trace in drawn.data], axis=0).tolist() == [1, 1]
    assert len({trace.stackgroup for trace in drawn.data}) == 1 and drawn.data[0].xaxis == "x2"


def test_figures_become_plain_json():
    """Lists, not encoded arrays, so that any version of plotly.js reads them."""
    violins = charts.size_violins({"loss": np.zeros((2, 4))})
    for figure in (violins, charts.class_distribution(["a"], [14])):
        assert "bdata" not in json.dumps(json.loads(figure.to_json())["data"])
