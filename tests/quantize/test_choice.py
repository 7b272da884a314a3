"""The calibrator ``auto``: it takes the one whose int8 network is closest to the float one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from quantize import assignment
from quantize.assignment import Assignable
from quantize.choice import CANDIDATES, best_calibrator, by_calibrator, calibrated
from quantize.ranges import find_ranges
from quantize.schemes.base import Material
from quantize.sensitivity import output_sqnr_db
from tests.quantize.chains import chain, matrices, samples
from tests.quantizing import keep, quantized


def test_outliers_are_cut_off_where_that_brings_the_network_closer(tmp_path):
    raw = samples(256)
    raw[7, 3] = 80.0  # one sample in 256
    source, calibration = chain(matrices(3), tmp_path / "fp32"), keep(raw, tmp_path / "c")
    found = calibrated(Material(source, calibration, "auto"))
    every = {name: Assignable.of(Material(source, calibration), name) for name in CANDIDATES}
    closeness = {name: output_sqnr_db(one, "x", raw) for name, one in every.items()}
    assert closeness[found.calibrator] >= max(closeness.values()) - 0.1
    made = quantized(source, raw, tmp_path / "int8", calibrator="auto")
    assert made.facts["calibrator"] == found.calibrator


def test_what_is_as_good_gives_way_to_what_comes_first():
    assert best_calibrator({"minmax": 20.0, "percentile": 19.0, "mse": 20.05}) == "minmax"
    assert best_calibrator({"minmax": 20.0, "percentile": 19.0, "mse": 20.2}) == "mse"


def test_a_calibrator_that_is_asked_for_is_taken_unseen(tmp_path):
    raw = np.repeat(samples(4), 8, axis=0)
    source, calibration = chain(matrices(2), tmp_path / "fp32"), keep(raw, tmp_path / "c")
    assert calibrated(Material(source, calibration, "entropy")).calibrator == "entropy"
    assert list(by_calibrator(Material(source, calibration, "entropy"))) == ["entropy", *CANDIDATES]
    assert list(by_calibrator(Material(source, calibration, "auto"))) == list(CANDIDATES)


def test_samples_are_run_once_for_all_that_starts_from_the_same_ranges(tmp_path, monkeypatch):
    calls = []

    def counted(model, name, calibration, method, skip=()):
        calls.append((calibration.folder.name, method))
        return find_ranges(model, name, calibration, method, skip)

    monkeypatch.setattr(assignment, "find_ranges", counted)
    source, here, there = chain(matrices(3), tmp_path / "fp32"), samples(64), samples(64, seed=5)
    material = Material(source, keep(here, tmp_path / "c"), "auto")
    first = calibrated(material)
    calibrated(replace(material, exclude=(first.layers[0].name,)))
    assert calibrated(material, symmetric=True).symmetric
    assert calibrated(material) is first
    assert sorted(calls) == sorted(("c", name) for name in CANDIDATES)
    other = calibrated(replace(material, calibration=keep(there, tmp_path / "d"), calibrator="minmax"))
    assert calls[len(CANDIDATES) :] == [("d", "minmax")]
    assert other.ranges != first.ranges
