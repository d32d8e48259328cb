"""The figures show the numbers they were given."""

import json

import pytest

from dynamask.structures import MASK_SIZES
from dynamask.viz.charts import class_distribution, macs_against_budget, size_shares
from dynamask.viz.overlay import SIZE_COLOURS

MACS = [10_000_000, 25_000_000, 40_000_000, 55_000_000]


def test_size_shares_counts_every_size():
    figure = size_shares([14, 112, 112, 56])
    assert [bar.y[0] for bar in figure.data] == [1, 0, 1, 2]
    assert [bar.marker.color for bar in figure.data] == [SIZE_COLOURS[size] for size in MASK_SIZES]
    assert figure.data[3].text[0] == "2 (50%)"
    assert len({bar.marker.pattern.shape for bar in figure.data}) == 4


def test_size_shares_of_no_instance():
    figure = size_shares([])
    assert [bar.y[0] for bar in figure.data] == [0, 0, 0, 0]
    assert "0 instances" in figure.layout.title.text


def test_unknown_size_is_refused():
    with pytest.raises(ValueError, match="15"):
        size_shares([14, 15])


def test_mean_macs_and_budget_line():
    figure = macs_against_budget([10_000_000, 40_000_000], MACS, budget=0.03)
    assert figure.data[0].x[0] == pytest.approx(0.025) and "0.025" in figure.layout.title.text
    assert [shape.x0 for shape in figure.layout.shapes] == pytest.approx([0.01, 0.025, 0.04, 0.055, 0.03])
    assert any("0.03" in note.text for note in figure.layout.annotations)
    assert figure.layout.xaxis.range[1] > 0.055


def test_mean_macs_without_instances_or_budget():
    figure = macs_against_budget([], MACS)
    assert figure.data[0].x[0] == 0.0 and figure.layout.title.text == "No instance"
    assert len(figure.layout.shapes) == 4 and not figure.layout.annotations
    with pytest.raises(ValueError):
        macs_against_budget([], MACS[:3])


def test_class_distribution_orders_and_normalises():
    figure = class_distribution([1, 1, 2, 2, 2, 2], [112, 56, 14, 14, 14, 28], ["__background__", "giraffe", "book"])
    assert list(figure.data[0].y) == ["book", "giraffe"]  # plotly draws the last row on top
    shares = [list(bar.x) for bar in figure.data]
    assert [sum(column) for column in zip(*shares)] == pytest.approx([1.0, 1.0])
    assert shares[0] == pytest.approx([0.75, 0.0]) and shares[3] == pytest.approx([0.0, 0.5])


def test_class_distribution_keeps_the_most_frequent_and_checks_labels():
    figure = class_distribution([1, 2, 2], [14, 14, 14], ["__background__", "a", "b"], most=1)
    assert list(figure.data[0].y) == ["b"]
    assert list(class_distribution([], [], ["__background__"]).data[0].y) == []
    with pytest.raises(ValueError):
        class_distribution([3], [14], ["__background__", "a"])
    with pytest.raises(ValueError):
        class_distribution([1, 1], [14], ["__background__", "a"])


def test_figures_become_plain_json():
    """Lists, no encoded arrays: any plotly.js reads them."""
    for figure in (size_shares([14]), macs_against_budget([MACS[0]], MACS, 0.02), class_distribution([1], [14], "ab")):
        assert "bdata" not in json.dumps(json.loads(figure.to_json())["data"])
