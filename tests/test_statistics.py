import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fresco.quality import QualityError
from fresco.statistics import bootstrap_interval, frechet_distance


def features(seed, n=40, d=5):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mixing


def root(matrix):
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T


def slow_distance(x, y):
    """The formula as written, with square roots of matrices."""
    a, b = torch.cov(x.T), torch.cov(y.T)
    cross = root(root(a) @ b @ root(a))
    return ((x.mean(0) - y.mean(0)).square().sum() + (a + b - 2 * cross).trace()).item()


@given(st.integers(0, 1000), st.integers(2, 60))
def test_frechet_distance_is_the_formula(seed, n):
    x, y = features(seed, n), features(seed + 1, 30)
    assert frechet_distance(x, y) == pytest.approx(slow_distance(x, y), rel=1e-5, abs=1e-6)


@given(st.integers(0, 1000))
def test_frechet_distance_is_symmetric_and_zero_between_equals(seed):
    x, y = features(seed), features(seed + 1)
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x))
    assert frechet_distance(x, x.flip(0)) == pytest.approx(0, abs=1e-9)


@given(st.integers(0, 1000), st.floats(-3, 3))
def test_frechet_distance_of_shifted_features_is_the_squared_shift(seed, shift):
    x = features(seed)
    assert frechet_distance(x + shift, x) == pytest.approx(5 * shift**2, abs=1e-8)


def test_pinned_frechet_distance_of_known_deviations():
    # deviations 1 and 3 along one axis, 2 and 2 along the other: (1 - 3)^2, and means 3 apart
    unit = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]]) * 0.75**0.5
    x, y = unit * torch.tensor([1.0, 2.0]), unit * torch.tensor([3.0, 2.0])
    assert frechet_distance(x, y + torch.tensor([0.0, 3.0])) == pytest.approx(4 + 9, abs=1e-5)


@pytest.mark.parametrize(("n", "d"), [(1, 5), (4, 6)])
def test_frechet_distance_refuses_what_is_no_pair_of_sets(n, d):
    with pytest.raises(QualityError, match=rf"got \[{n}, {d}\] and \[40, 5\]"):
        frechet_distance(torch.zeros(n, d), features(0))


@settings(max_examples=10)
@given(st.integers(0, 1000))
def test_interval_of_a_mean_is_that_of_the_central_limit(seed):
    seen = torch.randn(200, generator=torch.Generator().manual_seed(seed))
    low, high = bootstrap_interval(200, lambda index: seen[index].mean().item(), seed)
    error = seen.std(correction=0).item() / 200**0.5
    assert low == pytest.approx(seen.mean().item() - 1.96 * error, abs=0.3 * error)
    assert high == pytest.approx(seen.mean().item() + 1.96 * error, abs=0.3 * error)


def test_interval_widens_with_the_level_and_repeats_with_the_seed():
    seen = torch.arange(30.0)

    def mean(index):
        return seen[index].mean().item()

    assert bootstrap_interval(30, mean) == bootstrap_interval(30, mean)
    assert bootstrap_interval(30, mean) != bootstrap_interval(30, mean, seed=1)
    (wide, narrow) = (bootstrap_interval(30, mean, level=level) for level in (0.99, 0.5))
    assert wide[0] < narrow[0] < 14.5 < narrow[1] < wide[1]


def test_pinned_interval_of_equal_pictures_has_no_width():
    assert bootstrap_interval(5, lambda index: float(len(index))) == (5.0, 5.0)


def test_centred_interval_holds_the_distance_that_duplicates_bias():
    x, y = features(0, 12, 8), features(0, 200, 8)

    def distance(index):
        return frechet_distance(x[index], y)

    found = distance(torch.arange(12))
    low, high = bootstrap_interval(12, distance, draws=300, centred=True)
    assert low < found < high
    plain = bootstrap_interval(12, distance, draws=300)
    assert plain[1] - plain[0] == pytest.approx(high - low)
    assert plain[0] + plain[1] > low + high  # biased upward


@pytest.mark.parametrize("asked", [{"n": 0}, {"draws": 0}, {"level": 1.0}])
def test_interval_refuses_what_has_none(asked):
    asked = {"n": 3, "statistic": lambda _: 0.0} | asked
    with pytest.raises(QualityError, match="n and draws >= 1"):
        bootstrap_interval(**asked)
