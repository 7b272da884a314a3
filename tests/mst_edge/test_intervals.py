from __future__ import annotations

import numpy as np
import pytest

from mst_edge.compare.intervals import gain_over_seeds, score_over_seeds
from mst_edge.core.scoring import OutputSpec, scoring_of
from mst_edge.core.stats import paired_difference, proportion_interval

ACCURACY = scoring_of(OutputSpec("classification", ("a", "b")))


def _scored(right):
    """What the scoring of classes keeps of a sample: whether it was right."""
    return [one[:, None].astype(float) for one in right]


def _gain(reference, other, overlap):
    return gain_over_seeds(_scored(reference), _scored(other), ACCURACY, overlap)


def _seeds(rng, gains, samples=400):
    """Per seed two vectors whose accuracies differ by exactly ``gain``, on shuffled samples."""
    pairs = []
    for gain in gains:
        before = np.arange(samples) < samples // 2
        after = np.arange(samples) < samples // 2 + round(gain * samples)
        order = rng.permutation(samples)
        pairs.append((before[order], after[order]))
    return tuple(zip(*pairs, strict=True))


def test_a_gain_over_seeds_is_the_corrected_t_interval_where_seeds_differ():
    gains = [0.3, 0.1, -0.1]
    found = _gain(*_seeds(np.random.default_rng(0), gains), 1 / 3)
    # 4.3027 is t for 95 % and two degrees of freedom, from printed tables.
    half = 4.302653 * np.std(gains, ddof=1) * np.sqrt(1 / 3 + 1 / 3)
    assert found.estimate == pytest.approx(0.1)
    assert (found.low, found.high) == pytest.approx((0.1 - half, 0.1 + half))


def test_seeds_that_agree_by_luck_do_not_make_a_gain_certain():
    before, after = _seeds(np.random.default_rng(0), [0.02, 0.02])
    found = _gain(before, after, 1 / 3)
    pooled = paired_difference(np.concatenate(before), np.concatenate(after))
    assert found.high - found.low == pytest.approx(pooled.high - pooled.low)
    assert found.low == pytest.approx(-pooled.high)
    accuracy = score_over_seeds(_scored(before), ACCURACY, 1 / 3)
    wilson = proportion_interval(400, 800)
    assert (accuracy.estimate, accuracy.low, accuracy.high) == pytest.approx((0.5, wilson.low, wilson.high))


def test_one_seed_is_judged_by_its_samples():
    (before,), (after,) = _seeds(np.random.default_rng(0), [0.1])
    found, drop = _gain([before], [after], 1 / 3), paired_difference(before, after)
    assert (found.estimate, found.low, found.high) == pytest.approx((-drop.estimate, -drop.high, -drop.low))


def test_the_correction_covers_the_truth_although_splits_share_samples():
    """Two classifiers that are equally good on all data; every seed tests them on a fifth of one finite pool."""
    rng = np.random.default_rng(0)
    hits = {0.0: 0, 1 / 3: 0}
    for _ in range(300):
        pool = rng.choice([-1, 0, 1], p=[0.15, 0.7, 0.15], size=500)
        splits = [pool[rng.permutation(500)[:100]] for _ in range(10)]
        for overlap in hits:
            found = _gain([d >= 0 for d in splits], [d <= 0 for d in splits], overlap)
            hits[overlap] += found.low <= 0 <= found.high
    assert hits[1 / 3] / 300 >= 0.93 > hits[0.0] / 300


def test_seeds_that_share_their_test_samples_do_not_make_more_of_them():
    before, after = _seeds(np.random.default_rng(0), [0.02])
    one = _gain(before, after, None)
    four = _gain(before * 4, after * 4, None)
    assert (four.estimate, four.low, four.high) == pytest.approx((one.estimate, one.low, one.high))
    pooled = _gain(before * 4, after * 4, 1 / 3)
    assert pooled.high - pooled.low < 0.6 * (four.high - four.low)
    wilson = proportion_interval(200, 400)
    accuracy = score_over_seeds(_scored(before * 4), ACCURACY, None)
    assert (accuracy.low, accuracy.high) == pytest.approx((wilson.low, wilson.high))


def test_where_initialisations_differ_more_than_samples_t_is_not_corrected():
    gains = [0.3, 0.1, -0.1]
    found = _gain(*_seeds(np.random.default_rng(0), gains), None)
    half = 4.302653 * np.std(gains, ddof=1) * np.sqrt(1 / 3)
    assert (found.low, found.high) == pytest.approx((0.1 - half, 0.1 + half))
