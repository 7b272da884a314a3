"""Commands that are not a run: usage errors, data, apps, predict, report."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from mst_edge.cli.apps import app_names
from tests.conftest import ROOT, mst_edge, write_arrays, write_small_recipe


def test_help_lists_the_commands():
    done = mst_edge("--help")
    assert done.code == 0
    for command in ("init", "run", "distill", "quantize", "deploy", "compare", "predict", "profile", "check", "report"):
        assert command in done.out
    for command in ("data", "app", "cache"):
        assert command in done.out


@pytest.mark.parametrize("arguments", [["run"], ["run", "x", "--nope"], ["nope"], ["data", "fetch"]])
def test_usage_errors_exit_2_without_a_traceback(arguments):
    done = mst_edge(*arguments)
    assert done.code == 2
    assert "Traceback" not in done.err


def test_data_list_names_every_dataset_with_its_licence():
    rows = json.loads(mst_edge("data", "list", "--json").out)
    assert {row["name"] for row in rows} >= {"av_digits", "avmnist"}
    assert all(row["licence"] for row in rows)
    assert "ships with mst-edge" in mst_edge("data", "list").out


def test_data_build_writes_a_folder_that_is_a_dataset(tmp_path):
    done = mst_edge("data", "build", "av_digits", "--out", tmp_path / "d", "--set", "pairs=200", "--by", "speaker")
    assert done.code == 0, done.err
    assert "200 samples, image, audio, 10 classes" in done.out
    assert np.load(tmp_path / "d" / "audio.npy").shape == (200, 8000)
    assert mst_edge("data", "build", "av_digits", "--out", tmp_path / "d").code == 2
    assert (
        "did you mean 'pairs'" in mst_edge("data", "build", "av_digits", "--out", tmp_path / "e", "--set", "pair=3").err
    )
    assert not (tmp_path / "e").exists()


def test_data_that_ships_needs_no_fetching():
    assert "nothing to fetch" in mst_edge("data", "fetch", "av_digits").out


def test_unknown_datasets_and_apps_list_the_known(finished_run):
    assert "did you mean 'avmnist'" in mst_edge("data", "fetch", "avminst").err
    done = mst_edge("app", "spoken-digit", finished_run / "bundles" / "cpu")
    assert done.code == 2
    assert "did you mean 'spoken-digits'" in done.err


def test_apps_are_found_by_their_files():
    assert {"spoken-digits", "digits-camera", "predict"} <= set(app_names())
    for name in app_names():
        assert mst_edge("app", name, "--help").code == 0


def test_predict_labels_files_and_goes_on_after_a_bad_one(finished_run, tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((40, 3), np.float32))
    np.save(tmp_path / "b.npy", np.zeros((4, 3), np.float32))
    bundle = finished_run / "bundles" / "cpu"
    done = mst_edge("predict", bundle, tmp_path / "a.npy", tmp_path / "b.npy", tmp_path / "c.npy", "--json")
    assert done.code == 2
    (line,) = done.out.splitlines()
    record = json.loads(line)
    assert record["file"].endswith("a.npy")
    assert sum(record["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    assert "b.npy: holds (4, 3)" in done.err
    assert "c.npy: no such file" in done.err
    done = mst_edge("predict", finished_run / "bundles" / "cpu.zip", tmp_path, "--runtime", "onnxruntime")
    assert "a.npy" in done.out


def test_predict_refuses_what_is_no_bundle(tmp_path):
    done = mst_edge("predict", tmp_path, "x.wav")
    assert done.code == 2
    assert "has no manifest.json" in done.err


@pytest.mark.parametrize("app", ["spoken-digits", "digits-camera"])
def test_apps_refuse_a_bundle_of_another_sense(finished_run, app):
    done = mst_edge("app", app, finished_run / "bundles" / "cpu", "x.wav")
    assert done.code == 2
    assert "its student" in done.err


def test_report_is_written_again_from_the_results(finished_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (run / "report.html").unlink()
    done = mst_edge("report", run)
    assert done.code == 0
    assert (run / "report.html").read_text() == (finished_run / "report.html").read_text()
    assert mst_edge("report", tmp_path).code == 2


def test_the_page_is_self_contained(finished_run):
    page = (finished_run / "report.html").read_text()
    for forbidden in ("http://", "https://", "<script", "<link", "<img", "url("):
        assert forbidden not in page
    assert page.count("<svg") >= 5
    for wanted in (
        "gate passed",
        "Training curves",
        "Who the router listens to",
        "Confusion",
        "Provenance",
        "onnxruntime-int8",
    ):
        assert wanted in page


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
def test_a_browser_draws_the_page(finished_run, tmp_path):
    """A real headless browser opens it offline and lays out every chart and table."""
    page = (finished_run / "report.html").read_text()
    probe = tmp_path / "probe.html"
    script = (
        "<script>addEventListener('load', () => { const charts = [...document.querySelectorAll('svg')];"
        "document.title = JSON.stringify({charts: charts.length,"
        "drawn: charts.filter(c => c.getBoundingClientRect().width > 150).length,"
        "wide: document.documentElement.scrollWidth <= innerWidth}); });</script>"
    )
    probe.write_text(
        page.replace("default-src 'none'", "default-src 'unsafe-inline'").replace("</main>", f"{script}</main>")
    )
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
        "--disable-background-networking --disable-component-update --disable-sync"
    )
    command = [
        "chromium",
        *flags.split(),
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=900,1200",
        "--dump-dom",
        probe.as_uri(),
    ]
    dom = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    seen = json.loads(dom.split("<title>")[1].split("</title>")[0].replace("&quot;", '"'))
    assert seen["charts"] == seen["drawn"] >= 5
    assert seen["wide"]


def test_text_from_the_data_is_escaped_in_the_page(finished_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    result = json.loads((run / "result.json").read_text())
    result["data"]["classes"][0] = "<script>alert(1)</script>"
    result["name"] = "<b>x</b>"
    (run / "result.json").write_text(json.dumps(result))
    assert mst_edge("report", run).code == 0
    page = (run / "report.html").read_text()
    assert "<script>alert" not in page
    assert "<b>x</b>" not in page


def test_shipped_modules_run_as_a_module():
    assert mst_edge("data", "--help", cwd=ROOT).code == 0


@pytest.mark.parametrize(("module", "extra"), [("torch", "train"), ("onnxscript", "quantize")])
def test_a_missing_extra_is_named_before_anything_is_trained(tmp_path, module, extra):
    """As on the base install, which brings the device's side alone."""
    recipe = write_small_recipe(tmp_path / "r.yaml", write_arrays(tmp_path / "data", samples=120))
    code = f"import sys; sys.modules[{module!r}] = None; from mst_edge.cli.app import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "run", str(recipe), "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"error: this needs {module}, which is not installed; pip install 'mst-edge[{extra}]'"
    )
    assert not (tmp_path / "out").exists()
