"""A number on an ordinal scale: classes by both rules, soft targets, and metrics against scikit-learn's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

from distill.datasets.arrays import open_arrays
from distill.tasks import Regression
from distill.tasks.ordinal import class_targets, expected_number, nearest_class, sdk_class
from mst_edge.core.errors import UserError
from mst_edge.core.scoring import ordinal_metrics, scoring_of

SENTIMENT = torch.arange(-3.0, 4)
GRID = [-3, -2.5, -2, -1.5, -1, -0.5, -0.01, 0, 0.01, 0.5, 1, 1.5, 2, 2.5, 3]


def test_the_expectation_of_a_soft_target_is_the_number_itself():
    numbers = torch.linspace(-3, 3, 601)
    shares = class_targets(numbers, SENTIMENT, "soft")
    assert (shares @ SENTIMENT - numbers).abs().max() <= 1e-6
    assert ((shares > 0).sum(dim=1) <= 2).all()
    assert torch.allclose(shares.sum(dim=1), torch.ones(601))
    uneven = torch.tensor([0.0, 1.0, 5.0])
    assert class_targets(torch.tensor([4.0, 5.0]), uneven, "soft").tolist() == [[0, 0.25, 0.75], [0, 0, 1]]


def _sdk_by_hand(a: float) -> int:
    """The table of the CMU Multimodal SDK, row by row."""
    if a < -2:
        return -3
    if a < -1:
        return -2
    if a < 0:
        return -1
    if a == 0:
        return 0
    return 1 if a <= 1 else 2 if a <= 2 else 3


@pytest.mark.parametrize(("rule", "by_hand"), [(sdk_class, _sdk_by_hand), (nearest_class, lambda a: int(np.round(a)))])
def test_classes_are_those_of_the_published_tables(rule, by_hand):
    said = rule(torch.tensor(GRID, dtype=torch.float32), SENTIMENT) - 3
    assert said.tolist() == [by_hand(a) for a in GRID]


def test_both_rules_make_targets_of_one_class():
    numbers = torch.tensor([0.3, 2.2])
    assert class_targets(numbers, SENTIMENT, "round").argmax(dim=1).tolist() == [3, 5]
    assert class_targets(numbers, SENTIMENT, "sdk").argmax(dim=1).tolist() == [4, 6]


def test_the_expected_number_is_the_mean_of_the_centres_by_probability():
    logits = np.random.default_rng(0).normal(size=(5, 7)) * 3
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    said = expected_number(torch.from_numpy(logits), SENTIMENT)
    assert np.allclose(said[:, 0], p @ np.arange(-3, 4), atol=1e-5)


def _task(centres=(-3, -2, -1, 0, 1, 2, 3)):
    return Regression(torch.tensor([0.2]), torch.tensor([1.5]), ["sentiment"], ordinal=[float(b) for b in centres])


def test_metrics_are_those_of_the_two_toolkits():
    """Rendered with numpy and scikit-learn; answers beyond the scale and truths of exactly 0 are among them."""
    rng = np.random.default_rng(0)
    truth = np.round(rng.uniform(-3, 3, 400) * 5) / 5
    said = truth + rng.normal(0, 1.2, 400)
    task = _task()
    meter = task.meter()
    for part in np.array_split(np.arange(400), 7):
        standardised = torch.from_numpy((said[part] - 0.2) / 1.5).float()[:, None]
        meter.add(standardised, torch.from_numpy(truth[part]).float()[:, None])
    found = meter.result()
    clipped = np.clip(said, -3, 3)
    nonzero = truth != 0
    wanted = {
        "mae_sentiment": np.abs(said - truth).mean(),
        "pearson": np.corrcoef(said, truth)[0, 1],
        "acc_rounded": accuracy_score(np.round(truth), np.round(clipped)),
        "acc_sdk": np.mean([_sdk_by_hand(a) == _sdk_by_hand(b) for a, b in zip(clipped, truth, strict=True)]),
        "acc2_has0": accuracy_score(truth >= 0, said >= 0),
        "f1_has0": f1_score(truth >= 0, said >= 0, average="weighted"),
        "acc2_non0": accuracy_score(truth[nonzero] > 0, said[nonzero] > 0),
        "f1_non0": f1_score(truth[nonzero] > 0, said[nonzero] > 0, average="weighted"),
    }
    assert {key: found[key] for key in wanted} == pytest.approx(wanted, abs=1e-6)
    assert found["acc_rounded"] != found["acc_sdk"]


def test_tables_show_every_metric_of_the_scale_and_the_headline_stays():
    task = _task()
    shown = {column.key: column.heading for column in task.scoring.columns()}
    assert set(ordinal_metrics(task.output.ordinal)) < set(shown)
    assert set(shown) <= set(task.metrics(torch.zeros(4, 1), torch.tensor([[1.0], [0.0], [-1.0], [0.5]])))
    assert shown["acc_sdk"] == "Acc-7 (SDK)"
    assert scoring_of(task.output).metric == "nrmse"


def test_a_scale_without_a_sign_has_one_accuracy_and_no_rule_of_the_sdk():
    stars = _task((1, 2, 3, 4, 5))
    metrics = stars.metrics(torch.tensor([[0.0], [9.0]]), torch.tensor([[1.0], [5.0]]))
    assert metrics["acc_rounded"] == 1.0  # 0.2 and 13.7 are clipped to the scale
    assert list(ordinal_metrics(stars.output.ordinal)) == ["acc_rounded"]
    assert not math.isnan(_task().metrics(torch.zeros(1, 1), torch.zeros(1, 1))["f1_non0"])


def _folder(tmp_path, target, yaml):
    np.save(tmp_path / "facts.npy", np.zeros((len(target), 3), np.float32))
    np.save(tmp_path / "target.npy", np.array(target, np.float32))
    (tmp_path / "dataset.yaml").write_text(f"task: regression\n{yaml}\n")
    return tmp_path


def test_the_scale_comes_with_the_data(tmp_path):
    assert open_arrays(_folder(tmp_path, [0.5, -3, 3], "ordinal: [-3, 0, 3]")).truth.ordinal == (-3.0, 0.0, 3.0)


@pytest.mark.parametrize(
    ("target", "yaml", "message"),
    [
        ([0.5, 3.2], "ordinal: [-3, 0, 3]", r"target\.npy: label 3\.2 of sample 1 is out of the ordinal range -3\.\.3"),
        ([[0.5, 1.0]], "ordinal: [-3, 0, 3]", r"ordinal is for one number, target\.npy has 2 per sample"),
        ([0.5], "ordinal: [3, 0]", r"ordinal must be two or more rising numbers, received \[3\.0, 0\.0\]"),
    ],
)
def test_what_is_no_scale_is_refused(tmp_path, target, yaml, message):
    with pytest.raises(UserError, match=message):
        open_arrays(_folder(tmp_path, target, yaml))
