"""Policies: hand values, brute force, and refusals."""

import itertools
import math

import pytest
import torch

from dynamask.models.masks import policies
from dynamask.structures import DynaMaskError

MACS = (7_235_200, 13_254_912, 19_300_000, 25_400_000)
UNEVEN = (100, 101, 150, 1000)


def gmacs(macs: float) -> float:
    return macs / 1e9


def logits_of(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed)) * 2


def brute_force(logits: torch.Tensor, macs: tuple[int, ...], limit: float) -> float:
    """Best Σ log p over all assignments whose mean cost is within the limit."""
    log_probs = logits.double().log_softmax(1).tolist()
    return max(
        sum(row[k] for row, k in zip(log_probs, choice))
        for choice in itertools.product(range(4), repeat=len(logits))
        if sum(macs[k] for k in choice) <= limit * len(logits) + 1e-6
    )


def value_of(logits: torch.Tensor, choice: torch.Tensor) -> float:
    return float(logits.double().log_softmax(1).gather(1, choice[:, None]).sum())


def mean_macs(choice: torch.Tensor, macs: tuple[int, ...]) -> float:
    return float(torch.tensor(macs, dtype=torch.float64)[choice].mean())


def test_policies_are_named_by_text():
    names = ["learned", "quality", "size", "fixed:14", "fixed:28", "fixed:56", "fixed:112"]
    assert [str(policies.Policy.parse(name)) for name in names] == names == [str(p) for p in policies.POLICIES]
    fixed = policies.Policy.parse("fixed:28")
    assert fixed == policies.Policy.fixed(28) == policies.Policy.parse(fixed) and fixed.size == 28
    assert policies.Policy.parse("oracle", others=("random", "oracle")).name == "oracle"
    for unknown in ("best", "oracle", "fixed:", "fixed:20", "fixed", "", None, 28):
        with pytest.raises(DynaMaskError, match="is unknown; choose one of learned, quality, size, fixed:14, "):
            policies.Policy.parse(unknown)
    with pytest.raises(DynaMaskError) as caught:
        policies.Policy.parse("x" * 1000)
    assert len(str(caught.value)) < 200
    with pytest.raises(DynaMaskError, match="a budget cannot be combined with the policy 'fixed:28'"):
        fixed.check_budget(0.1)


def test_a_policy_chooses_as_its_function_does():
    logits, boxes, size = logits_of(6), torch.rand(6, 4).cumsum(1) * 50, (100, 200)
    quality = torch.rand(6, 4, 2)
    choices = {policy: policy.choose(boxes, size, logits, quality=quality) for policy in policies.POLICIES}
    chosen = {str(policy): choice.tolist() for policy, choice in choices.items()}
    assert chosen["quality"] == policies.nearly_best(policies.combined_quality(quality)).tolist()
    assert chosen["learned"] == policies.learned(logits).tolist() and chosen["fixed:56"] == [2] * 6
    assert chosen["size"] == policies.size_based(boxes, size).tolist()
    limit = MACS[1]
    budget = policies.LEARNED.choose(boxes, size, logits, MACS, limit)
    assert budget.tolist() == policies.exact_budget(logits, MACS, limit).tolist()


def test_learned_is_the_argmax():
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0], [5.0, 4.0, 4.9, -1.0], [0.0, 0.0, 0.0, 0.1]])
    assert policies.learned(logits).tolist() == [1, 0, 3]


def test_fixed_is_one_size_for_all():
    assert policies.fixed(3, 56).tolist() == [2, 2, 2] and policies.fixed(0, 14).shape == (0,)
    with pytest.raises(DynaMaskError, match="mask size 20 does not exist; choose one of 14, 28, 56, 112"):
        policies.fixed(3, 20)


@pytest.mark.parametrize(
    ("width", "height", "index"),
    [
        (200, 100, 3),  # the whole picture: 4 + log2(1) = 4
        (101, 50.5, 2),  # a little over half the side: ⌊3.01⌋ = 3
        (100, 50, 2),  # half the side: 3
        (99, 49.5, 1),  # a little under half: ⌊2.98⌋ = 2
        (50, 25, 1),  # a quarter: 2
        (25, 12.5, 0),  # an eighth: 1
        (12.5, 6.25, 0),  # a sixteenth: 0, clamped to 1
        (1, 1, 0),
        (400, 200, 3),  # beyond the picture: 5, clamped to 4
        (200, 25, 2),  # only the area counts
    ],
)
def test_size_based_equals_equation_8_by_hand(width, height, index):
    boxes = torch.tensor([[7.0, 5.0, 7.0 + width, 5.0 + height]])
    assert policies.size_based(boxes, (100, 200)).tolist() == [index]


def test_size_based_takes_no_region_and_a_box_without_area():
    assert policies.size_based(torch.zeros(0, 4), (10, 10)).shape == (0,)
    assert policies.size_based(torch.tensor([[3.0, 3.0, 3.0, 3.0]]), (10, 10)).tolist() == [0]


@pytest.mark.parametrize("macs", [MACS, UNEVEN], ids=["even steps", "uneven steps"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_budget_is_as_good_as_brute_force(count, macs):
    limits = [macs[0], macs[0] * 1.01, *(macs[0] + share * (macs[3] - macs[0]) for share in (0.2, 0.5, 0.8)), macs[3]]
    for seed, limit in itertools.product(range(2), limits):
        logits = logits_of(count, seed)
        choice = policies.exact_budget(logits, macs, policies.budget_in_macs(gmacs(limit), macs))
        assert choice.dtype == torch.int64 and choice.shape == (count,)
        assert mean_macs(choice, macs) <= limit + 1e-3
        assert value_of(logits, choice) == pytest.approx(brute_force(logits, macs, limit), abs=1e-9)


@pytest.mark.parametrize("k", range(4))
@pytest.mark.parametrize("macs", [MACS, (7_235_203, 13_254_911, 19_300_001, 25_400_007), UNEVEN])
def test_a_budget_that_is_met_to_the_last_mac_is_met(macs, k):
    logits = torch.full((9, 4), -5.0)
    logits[:, k] = 5.0
    limit = policies.budget_in_macs(gmacs(macs[k]), macs)
    assert policies.exact_budget(logits, macs, limit).tolist() == [k] * 9
    assert policies.price_for_budget(logits, macs, limit) == 0.0


def test_every_cost_can_be_its_own_budget_despite_rounding():
    generator = torch.Generator().manual_seed(0)
    for cheapest in torch.randint(10**5, 10**9, (2000,), generator=generator).tolist():
        macs = (cheapest, 2 * cheapest, 3 * cheapest, 4 * cheapest)
        assert policies.budget_in_macs(cheapest / 1e9, macs) == cheapest


def test_a_large_budget_gives_every_region_its_first_choice():
    logits = logits_of(40)
    for budget in (gmacs(MACS[3]), 5.0, 1e300):
        assert policies.budget_in_macs(budget, MACS) == MACS[3]
    assert torch.equal(policies.exact_budget(logits, MACS, MACS[3]), logits.argmax(1))


def test_budget_of_many_regions_beats_every_price_at_its_cost():
    logits = logits_of(30, seed=5)
    for price in (0.0, 2e-8, 1e-7, 3e-7):
        priced = policies.at_price(logits, MACS, price)
        exact = policies.exact_budget(logits, MACS, mean_macs(priced, MACS))
        assert mean_macs(exact, MACS) <= mean_macs(priced, MACS) + 1e-3
        assert value_of(logits, exact) == pytest.approx(value_of(logits, priced), abs=1e-9)


def test_price_meets_the_budget_and_is_the_least_that_does():
    logits = logits_of(200, seed=7)
    free = mean_macs(policies.learned(logits), MACS)
    for limit in (MACS[0], MACS[0] * 1.2, 0.5 * (MACS[0] + free), free * 0.999):
        price = policies.price_for_budget(logits, MACS, limit)
        assert price > 0
        assert mean_macs(policies.at_price(logits, MACS, price), MACS) <= limit + 1e-3
        assert mean_macs(policies.at_price(logits, MACS, price * (1 - 1e-9)), MACS) > limit
    assert policies.price_for_budget(logits, MACS, free * 1.001) == 0.0
    assert torch.equal(policies.at_price(logits, MACS, 0.0), policies.learned(logits))


def test_no_region_at_all():
    none = torch.zeros(0, 4)
    assert policies.learned(none).shape == (0,)
    assert policies.exact_budget(none, MACS, MACS[0]).shape == (0,)
    assert policies.price_for_budget(none, MACS, MACS[0]) == 0.0
    assert policies.random_permutation(policies.learned(none)).shape == (0,)


def test_random_is_a_permutation_of_the_learned_sizes():
    sizes = policies.learned(logits_of(60))
    shuffled = policies.random_permutation(sizes, torch.Generator().manual_seed(0))
    assert torch.equal(shuffled.sort().values, sizes.sort().values) and not torch.equal(shuffled, sizes)
    assert torch.equal(shuffled, policies.random_permutation(sizes, torch.Generator().manual_seed(0)))
    assert not torch.equal(shuffled, policies.random_permutation(sizes, torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("budget", [math.nan, math.inf, -math.inf, -1.0, 0.0, gmacs(MACS[0] - 1)])
def test_budgets_that_nothing_meets_are_refused(budget):
    with pytest.raises(DynaMaskError, match="not a finite number|below the cheapest size"):
        policies.budget_in_macs(budget, MACS)


def test_refusal_of_a_small_budget_names_one_that_works():
    with pytest.raises(DynaMaskError) as caught:
        policies.budget_in_macs(0.001, MACS)
    least = float(str(caught.value).split("at least ")[1].split()[0])
    assert policies.budget_in_macs(least, MACS) >= MACS[0]
