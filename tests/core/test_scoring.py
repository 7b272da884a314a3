"""Scores of every task: against independent renderings, added up sample by sample, with intervals that cover."""

from __future__ import annotations

import numpy as np
import pytest

from mst_edge.core.scoring import OutputSpec, collect, scoring_of

CLASSES = scoring_of(OutputSpec("classification", ("a", "b", "c")))
NUMBERS = scoring_of(OutputSpec("regression", ("t", "v"), ("K", "m/s"), scale=(0.1, 50.0)))


def pixels(ignore_label=None, classes=4):
    return scoring_of(OutputSpec("segmentation", tuple("abcdefgh"[:classes]), ignore_label=ignore_label))


def iou_by_hand(said, true, classes, ignored):
    """Pixel sets, class by class."""
    labelled = true != ignored
    shares = []
    for k in range(classes):
        inside, named = labelled & (true == k), labelled & (said == k)
        if k != ignored and (inside | named).any():
            shares.append((inside & named).sum() / (inside | named).sum())
    return np.mean(shares)


@pytest.mark.parametrize("ignored", [None, 0, 2, 255])
def test_miou_adds_up_over_samples(ignored):
    rng = np.random.default_rng(0)
    true = rng.integers(0, 3, (6, 5, 7))  # class 3 is never true
    if ignored == 255:
        true[:, 0] = 255
    logits = rng.normal(size=(6, 4, 5, 7))
    scoring = pixels(ignored)
    answers = scoring.answers(logits)
    assert answers.dtype == np.uint8
    found = scoring.value(scoring.statistics(answers, true))
    assert found == pytest.approx(iou_by_hand(logits.argmax(axis=1), true, 4, ignored))


def test_labelled_pixels_that_are_taken_for_the_ignored_class_are_errors():
    """Two errors in five labelled pixels: without them, accuracy and mIoU would be 1."""
    true = np.array([[[1, 1, 2, 2, 2, 0]]])
    said = np.array([[[1, 0, 2, 2, 0, 2]]])
    scoring = pixels(ignore_label=0, classes=3)
    assert scoring.value(scoring.statistics(said, true)) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert scoring.confusion(said, true).tolist() == [[0, 0, 0], [1, 1, 0], [1, 0, 2]]


def test_nrmse_is_in_units_of_the_training_deviation():
    target = np.array([[300.0, 0.0], [300.1, 100.0]])
    answers = target + np.array([[0.1, 0.0], [0.0, -50.0]])
    # Errors of one deviation in one of two numbers each: the mean square is 1/2.
    assert NUMBERS.value(NUMBERS.statistics(answers, target)) == pytest.approx(np.sqrt(0.5))


def test_a_drop_is_positive_where_a_model_is_worse_whichever_way_the_metric_goes():
    rng = np.random.default_rng(0)
    target = rng.normal(size=(50, 2)) * (0.1, 50)
    good, bad = (NUMBERS.statistics(target + e * np.array([0.1, 50.0]), target) for e in (0.1, 0.3))
    drop = NUMBERS.drop(good, bad)
    assert drop.estimate == pytest.approx(0.2)
    assert (drop.low, drop.high) == pytest.approx((0.2, 0.2))  # every sample is off by the same
    assert NUMBERS.gain(bad, good) == pytest.approx(0.2)
    true = np.array([0, 1, 2, 0])
    right, wrong = (CLASSES.statistics(np.eye(3)[said], true) for said in (true, [0, 1, 2, 1]))
    assert CLASSES.drop(right, wrong).estimate == pytest.approx(0.25)
    assert CLASSES.gain(wrong, right) == pytest.approx(0.25)


def test_the_bootstrap_of_a_mean_is_as_wide_as_its_standard_error():
    rng = np.random.default_rng(0)
    squares = rng.gamma(2.0, size=(400, 1))
    found = NUMBERS.interval(squares)
    # The delta method: the deviation of sqrt(mean) is that of the mean over twice the root.
    error = squares.std() / np.sqrt(400) / (2 * np.sqrt(squares.mean()))
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.1)
    assert found.low < found.estimate < found.high


def test_the_paired_bootstrap_knows_that_both_saw_the_same_samples():
    rng = np.random.default_rng(0)
    squares = rng.gamma(0.5, size=(100, 1))  # samples differ a lot, both models hardly
    paired = NUMBERS.drop(squares, squares * 1.02)
    alone = NUMBERS.interval(squares)
    assert (paired.high - paired.low) < 0.05 * (alone.high - alone.low)
    assert paired.low > 0


def test_a_model_that_is_its_own_reference_has_no_drop():
    squares = np.random.default_rng(0).gamma(2.0, size=(20, 1))
    drop = NUMBERS.drop(squares, squares)
    assert [str(v) for v in (drop.estimate, drop.low, drop.high)] == ["0.0"] * 3


def test_differences_of_numbers_are_in_their_scale_and_leave_out_what_float32_cannot_hold():
    one = np.array([[300.0, 10.0]], np.float32)
    assert NUMBERS.difference(one + np.array([[0.05, 0.0]], np.float32), one) == pytest.approx(0.5, abs=0.01)
    assert NUMBERS.difference(np.nextafter(one, np.float32(np.inf)), one) == 0


def test_of_label_maps_only_the_first_outputs_are_kept(monkeypatch):
    rng = np.random.default_rng(0)
    batches = [rng.normal(size=(3, 4, 5, 7)).astype(np.float32) for _ in range(4)]
    monkeypatch.setattr("mst_edge.core.scoring._MOST_OUTPUT_BYTES", 5 * 4 * 4 * 5 * 7)
    said = collect(iter(batches), pixels())
    whole = np.concatenate(batches)
    assert np.array_equal(said.answers, whole.argmax(axis=1))
    assert np.array_equal(said.outputs, whole[:5])
    monkeypatch.setattr("mst_edge.core.scoring._MOST_OUTPUT_BYTES", 1)
    assert len(collect(iter(batches), pixels()).outputs) == 1


def test_an_output_survives_json():
    import json
    from dataclasses import asdict

    for output in (CLASSES.output, NUMBERS.output, pixels(255).output):
        assert OutputSpec.from_dict(json.loads(json.dumps(asdict(output)))) == output
