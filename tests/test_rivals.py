"""Tables that predict mask quality, and comparisons of predictors at equal budgets."""

import numpy as np
import pytest

from dynamask.evaluation.bootstrap import paired_bootstrap
from dynamask.evaluation.choices import best_mix_quality, within_spearman
from dynamask.evaluation.rivals import (
    FRACTIONS,
    PRIOR,
    SIZE_BINS,
    BudgetComparison,
    Measured,
    QualityTable,
    correlations,
    cross_fitted,
)
from dynamask.structures import IOU_MEASURES

MACS = np.array([10.0, 40.0, 70.0, 100.0])


def world(count: int = 240, seed: int = 0, own: float = 0.1, pictures: int = 60) -> Measured:
    """Instances that gain from finer masks by their class and their size, and by something of their own."""
    rng = np.random.default_rng(seed)
    label, side = rng.integers(3, 7, count), rng.uniform(10, 200, count)
    need = 0.1 * (label - 3) + side / 1000 + own * rng.random(count)
    mask = 0.95 - need[:, None] * np.array([1.0, 0.5, 0.2, 0.0])
    quality = np.stack([mask, mask - 0.05], axis=2)
    return Measured(quality, label, side, np.sort(rng.integers(0, pictures, count)))


def test_a_class_table_is_the_shrunk_mean_of_the_class():
    train = world()
    found = QualityTable(train).predict(train)
    group, overall = train.label == 4, train.quality.mean(axis=0)
    expected = (train.quality[group].sum(axis=0) + PRIOR * overall) / (group.sum() + PRIOR)
    np.testing.assert_allclose(found[group], np.broadcast_to(expected, found[group].shape))
    unknown = Measured(train.quality[:1], np.array([99]), train.side[:1], train.picture[:1])
    np.testing.assert_allclose(QualityTable(train).predict(unknown)[0], overall)


def test_a_size_table_has_equally_filled_bins_with_their_means():
    train = world(800)
    table = QualityTable(train, by_class=False, by_size=True)
    assert len(table.thresholds) == SIZE_BINS - 1 and (np.diff(table.thresholds) > 0).all()
    low = train.side < table.thresholds[0]
    assert low.sum() == pytest.approx(800 / SIZE_BINS, abs=2)
    expected = (train.quality[low].sum(axis=0) + PRIOR * train.quality.mean(axis=0)) / (low.sum() + PRIOR)
    np.testing.assert_allclose(table.predict(train)[low][0], expected)


def test_rare_cells_of_class_and_size_stay_near_the_class():
    train = world()
    both, by_class = QualityTable(train, by_size=True), QualityTable(train)
    assert both.cells.shape == ((4 + 1) * SIZE_BINS, 4, 2)
    only = train.take(np.arange(1))
    alone = QualityTable(Measured(np.zeros((1, 4, 2)), only.label, only.side, only.picture), by_size=True)
    np.testing.assert_allclose(alone.predict(only), 0.0, atol=1e-12)
    outlier = Measured(np.concatenate([train.quality, np.zeros((1, 4, 2))]), *_with_one_more(train, 3, 500.0))
    rare = outlier.take(np.array([len(train)]))
    fitted = QualityTable(outlier, by_size=True).predict(rare)[0, 0, 0]
    assert 0.2 < fitted < by_class.predict(rare)[0, 0, 0], "one instance moves a cell a little"


def _with_one_more(train: Measured, label: int, side: float) -> tuple:
    return (np.append(train.label, label), np.append(train.side, side), np.append(train.picture, 10_000))


def test_tables_with_both_keys_predict_best_where_both_matter():
    train, test = world(2000), world(500, seed=1)
    error = {
        name: np.abs(QualityTable(train, c, s).predict(test) - test.quality).mean()
        for name, c, s in (("none", False, False), ("class", True, False), ("size", False, True), ("both", True, True))
    }
    assert error["both"] < min(error["class"], error["size"]) < max(error["class"], error["size"]) < error["none"]


def test_cross_fitted_predictions_never_use_the_own_picture():
    instances = world()
    before = cross_fitted(instances)
    group = instances.picture == instances.picture[0]
    changed = instances.quality.copy()
    changed[group] = 0.0
    after = cross_fitted(Measured(changed, instances.label, instances.side, instances.picture))
    for name, values in before.items():
        np.testing.assert_array_equal(values[group], after[name][group])
        assert not np.array_equal(values[~group], after[name][~group])
    single = instances.take(np.arange(3))
    same = Measured(single.quality, single.label, single.side, np.zeros(3, dtype=np.int64))
    assert all(np.isfinite(values).all() for values in cross_fitted(same).values())


@pytest.fixture(scope="module")
def comparison() -> BudgetComparison:
    train, test = world(2000), world(300, seed=1)
    predicted = {
        "oracle": test.quality[:, :, 0],
        "both": QualityTable(train, by_size=True).predict(test)[:, :, 0],
        "size": QualityTable(train, by_class=False, by_size=True).predict(test)[:, :, 0],
        "flat": QualityTable(train, by_class=False).predict(test)[:, :, 0],
    }
    return BudgetComparison(test, MACS, predicted, aware=test.quality)


def test_budgets_are_kept_and_better_predictions_choose_better(comparison):
    for fraction in FRACTIONS:
        for chosen in comparison.choices.values():
            assert MACS[chosen[fraction]].mean() <= fraction * MACS[-1] + 1e-9
        means = [comparison.quality(comparison.choices[n][fraction], "mask_iou").mean for n in ("oracle", "both")]
        assert means[0] >= means[1] > comparison.quality(comparison.choices["flat"][fraction], "mask_iou").mean
        gap = comparison.difference("both", "size", fraction, "boundary_iou")
        assert gap.mean > 0 and gap.high > 0, "the class matters in this world"
        assert comparison.difference("both", "both", fraction, "mask_iou").high == 0
        assert comparison.difference("size", "both", fraction, "mask_iou").mean == pytest.approx(
            -comparison.difference("both", "size", fraction, "mask_iou").mean
        )


def test_gains_are_over_the_blind_mixture_of_the_same_cost(comparison):
    fraction, quality = 0.5, comparison.test.quality[:, :, 1]
    chosen = comparison.choices["both"][fraction]
    mixture = best_mix_quality(quality.mean(axis=0)[:, None], MACS, np.array([MACS[chosen].mean()]))[0]
    expected = quality[np.arange(300), chosen].mean() - mixture
    assert comparison.over_mixture("both", fraction, "boundary_iou").mean == pytest.approx(expected)
    assert comparison.share_of_aware("oracle", fraction, "mask_iou").mean == pytest.approx(1.0)
    share = comparison.share_of_aware("both", fraction, "mask_iou")
    assert 0 < share.low < share.mean < 1
    figures = comparison.to_dict("both")
    assert set(figures) == set(map(str, FRACTIONS)) and set(figures["0.5"]) == set(comparison.choices)
    assert figures["0.5"]["size"]["mask_iou_difference"]["mean"] > 0
    blind = BudgetComparison(comparison.test, MACS, {"flat": quality * 0})
    assert blind.share_of_aware("flat", 0.5, "mask_iou").mean is None


def test_intervals_resample_pictures():
    one = world(30, pictures=30)
    many = Measured(*(np.repeat(values, 20, axis=0) for values in (one.quality, one.label, one.side, one.picture)))
    predicted = {"oracle": many.quality[:, :, 0], "none": np.zeros((600, 4))}
    found = BudgetComparison(many, MACS, predicted, fractions=(0.5,))
    gap = found.difference("oracle", "none", 0.5, "mask_iou")
    first, second = (many.quality[np.arange(600), found.choices[name][0.5], 0] for name in predicted)
    by_instance = paired_bootstrap(first - second)
    assert gap.mean == pytest.approx(by_instance.mean)
    assert gap.high - gap.low > 2 * (by_instance.high - by_instance.low), "20 copies of an instance add no knowledge"


def test_correlation_within_classes_is_not_that_between_them():
    rng = np.random.default_rng(0)
    label = np.repeat(np.arange(5), 60)
    a, b = label + 0.1 * rng.random(300), label + 0.1 * rng.random(300)
    found = correlations(a, b, label, np.arange(300) // 3, samples=50)
    assert found["pooled"].mean > 0.9 and abs(found["within"].mean) < 0.2
    assert found["within"].low < found["within"].mean < found["within"].high
    mixed = np.concatenate([np.arange(60.0), -np.arange(30.0)])
    assert within_spearman(mixed, np.arange(90.0), np.repeat([0, 1], [60, 30])) == pytest.approx(1 / 3)
    assert within_spearman(np.arange(4.0), np.arange(4.0), np.zeros(4)) is None
    assert set(IOU_MEASURES) == {"mask_iou", "boundary_iou"}
