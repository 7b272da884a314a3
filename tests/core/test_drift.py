"""Drift without labels: against independent renderings, at its ends, and the same on the host and in a bundle."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax
from scipy.stats import pearsonr

from apps.runtime.drift import drift as on_device
from mst_edge.core.drift import correlations, js_distances
from mst_edge.core.scoring import OutputSpec, Predictions, scoring_of

NAMES = ("a", "b", "c", "d")
CLASSES = scoring_of(OutputSpec("classification", NAMES))
PIXELS = scoring_of(OutputSpec("segmentation", NAMES))
NUMBERS = scoring_of(OutputSpec("regression", NAMES[:2], ("", ""), scale=(1.0, 50.0)))


def logits(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, shape).astype(np.float32)


def kept(scoring, outputs: np.ndarray) -> Predictions:
    return Predictions(scoring.answers(outputs), outputs)


def test_jensen_shannon_is_scipys():
    one, other = logits(50, 4), logits(50, 4, seed=1)
    expected = [jensenshannon(softmax(p), softmax(q), base=2) for p, q in zip(one, other, strict=True)]
    assert js_distances(one, other) == pytest.approx(expected, abs=1e-6)
    maps = js_distances(logits(2, 4, 3, 5), logits(2, 4, 3, 5, seed=1))
    assert maps.shape == (2, 3, 5)
    pixel = (softmax(logits(2, 4, 3, 5, seed=seed)[1, :, 2, 4]) for seed in (0, 1))
    assert maps[1, 2, 4] == pytest.approx(jensenshannon(*pixel, base=2), abs=1e-6)


def test_the_same_answers_do_not_drift_and_opposite_ones_drift_by_one():
    same = CLASSES.drift(kept(CLASSES, logits(20, 4)), kept(CLASSES, logits(20, 4)))
    assert (same.agreement, same.js_mean, same.js_max, same.samples) == (1.0, 0.0, 0.0, 20)
    sure = np.array([[1000.0, 0, 0, 0]] * 3, np.float32)
    opposite = CLASSES.drift(kept(CLASSES, sure), kept(CLASSES, sure[:, ::-1]))
    assert (opposite.agreement, opposite.js_mean, opposite.js_max) == (0.0, 1.0, 1.0)


def test_shifting_all_logits_alike_is_no_drift():
    """Only probabilities count; labels are the same too."""
    found = CLASSES.drift(kept(CLASSES, logits(20, 4) + 7), kept(CLASSES, logits(20, 4)))
    assert found.agreement == 1.0
    assert found.js_max < 1e-3


def test_correlation_is_pearsons_per_number_and_undefined_for_constants():
    one, other = logits(40, 3), logits(40, 3, seed=1)
    other[:, 2] = 5
    found = correlations(one, other)
    for number in (0, 1):
        assert found[number] == pytest.approx(pearsonr(one[:, number], other[:, number]).statistic, abs=1e-6)
    assert found[2] is None


def test_numbers_drift_by_correlation_whatever_their_unit():
    reference = np.stack([np.arange(10.0), 5000 + 50 * np.arange(10.0)], axis=1).astype(np.float32)
    off = reference * np.array([2, 1], np.float32) + np.array([0, 100], np.float32)
    found = NUMBERS.drift(kept(NUMBERS, off), kept(NUMBERS, reference))
    assert found.correlation == (pytest.approx(1), pytest.approx(1))
    assert found.agreement < 0.1  # correlation does not see a shift or a scale; the share of the same answers does
    assert found.js_mean is None
    assert found.least_correlation == pytest.approx(1)


@pytest.mark.parametrize(
    ("scoring", "shape"), [(CLASSES, (30, 4)), (PIXELS, (6, 4, 5, 7)), (NUMBERS, (30, 2))], ids=["c", "s", "r"]
)
def test_a_bundle_finds_the_same_drift_as_the_host(scoring, shape):
    said, reference = logits(*shape), logits(*shape) + 0.5 * logits(*shape, seed=1)
    host = scoring.drift(kept(scoring, said), kept(scoring, reference))
    numbers = scoring is NUMBERS
    device = on_device(said, reference, scoring.output.names, numbers=numbers)
    assert device.samples == host.samples
    if numbers:
        assert tuple(device.correlation.values()) == pytest.approx(host.correlation)
        assert "correlation with the fp32 model: a 0." in device.text()
        return
    assert device.agreement == pytest.approx(host.agreement)
    assert (device.js_mean, device.js_max) == pytest.approx((host.js_mean, host.js_max))


def test_loyalty_is_one_to_oneself_and_nothing_to_the_opposite():
    ranges = np.array([2.0, 500.0])
    sure = np.array([[1000.0, 0, 0, 0]] * 3, np.float32)
    for scoring, outputs in ((CLASSES, sure), (PIXELS, logits(2, 4, 3, 5))):
        itself = scoring.loyalty(kept(scoring, outputs), kept(scoring, outputs), ranges)
        assert itself == pytest.approx({"label": 1.0, "probability": 1.0})
    opposite = CLASSES.loyalty(kept(CLASSES, sure), kept(CLASSES, sure[:, ::-1]), ranges)
    assert opposite == pytest.approx({"label": 0.0, "probability": 0.0})
    numbers = np.zeros((5, 2), np.float32)
    apart = NUMBERS.loyalty(kept(NUMBERS, numbers), kept(NUMBERS, numbers + np.float32([1, 50])), ranges)
    assert apart == pytest.approx({"regression": 1 - (1 / 2 + 50 / 500) / 2})
