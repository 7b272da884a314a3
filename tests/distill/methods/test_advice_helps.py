"""Where VideoAdviser has to help: few labels, and noisy ones. With plenty of labels its gain may be nil."""

from __future__ import annotations

import numpy as np

from distill.lab import Epochs, OptimizerChoice
from distill.networks.registry import NetworkChoice
from tests.distill.methods.helpers import make_method
from tests.distill.methods.test_videoadviser import make_lab, make_store
from tests.opinions import RICH, write_opinions

TEACHER = {"classes": 7, "width": 0.25, "frames": 4, "hidden": 32, "utterance": "none", "dropout": 0.2}
CONTENDERS = {"labels only": {"advice_weight": 0.0}, "number": {}, "mean": {"signal": "mean"}}


def _errors(folder, seed: int) -> dict[str, float]:
    """Mean absolute errors on clean labels of students of one seed, which differ in what they learn from alone."""
    data = write_opinions(folder / "data", 700, seed=seed, label_noise=0.7, train=300, spread=0.3, lexicon=RICH)
    lab = make_lab(
        make_store(data, vocabulary=500),
        folder / "lab",
        seed=seed,
        batch=64,
        teacher=NetworkChoice("video_prompts", TEACHER),
        optimizer=OptimizerChoice(lr=0.03),
        epochs=Epochs(6, 1, 12),
    )
    lab.trained_teacher("multimodal")
    found = {}
    for name, options in CONTENDERS.items():
        own = lab.borrower(folder / name)
        student = make_method("videoadviser", own, **{"advice_weight": 6.0, **options}).train()
        found[name] = own.evaluate(student, "test")["mae_sentiment"]
    return found


def test_of_few_noisy_labels_the_advised_student_learns_more_than_from_labels_alone(tmp_path):
    """Labels of 300 texts with noise of deviation 0.7; words whose meaning 300 texts hardly tell; five seeds."""
    seeds = [_errors(tmp_path / str(seed), seed) for seed in range(5)]
    gains = np.array([row["labels only"] - row["number"] for row in seeds])
    assert (gains > 0).sum() >= 4
    assert gains.mean() > 0
    assert np.mean([row["labels only"] - row["mean"] for row in seeds]) > 0
