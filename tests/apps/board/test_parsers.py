"""What JetPack's programs print, understood: recorded lines, and properties of lines nobody recorded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.runtime import BundleError
from apps.runtime.board.bench import choose, parse_times, percentiles
from apps.runtime.board.dialect import Version, build_command, dialect_of, parse_version, require_opset, time_command
from apps.runtime.board.power import Watch, energy_mj, parse_line
from apps.runtime.board.score import score
from apps.runtime.board.tools import PowerMode, parse_clocks, parse_power_mode, read_board
from apps.runtime.manifest import InputSpec, Manifest
from mst_edge.core.scoring import OutputSpec, scoring_of
from tests.apps.board import recorded

FLAGS = "--memPoolSize=workspace:1024 --builderOptimizationLevel=3 --profilingVerbosity=detailed --skipInference"
SHAPES = "--minShapes=x:1x3x8x8 --optShapes=x:1x3x8x8 --maxShapes=x:1x3x8x8"
GOLDEN = {
    ((8, 6, 1), "fp32", ""): "",
    ((8, 6, 1), "fp16", ""): " --fp16",
    ((10, 3, 0), "int8", ""): " --int8 --fp16",
    ((10, 11, 0), "int8", "x"): f" --int8 --fp16 {SHAPES}",
    ((10, 12, 0), "fp32", "x"): f" --stronglyTyped {SHAPES}",
    ((10, 13, 3), "fp16", ""): " --stronglyTyped",
    ((10, 16, 0), "int8", "x"): f" --stronglyTyped {SHAPES}",
    ((11, 0, 0), "fp16", ""): "",
    ((11, 4, 1), "int8", "x"): f" {SHAPES}",
}


@pytest.mark.parametrize(("said", "number"), [("8502", "8.5.2"), ("8601", "8.6.1"), ("100300", "10.3.0")])
def test_the_banner_tells_the_version(said, number):
    assert str(parse_version(recorded.BANNER.format(number=said, arguments="--help"))) == number


def test_a_program_that_is_not_trtexec_is_refused():
    with pytest.raises(BundleError, match="trtexec: did not say its version"):
        parse_version("sh: trtexec: not found")


@pytest.mark.parametrize(("case", "ends"), GOLDEN.items())
def test_the_command_of_each_version_and_precision(case, ends):
    number, precision, free = case
    shapes = {free: (1, 3, 8, 8)} if free else {}
    command = build_command(
        "trtexec", Version(*number), precision, Path("m.onnx"), Path("m.plan"), Path("t.cache"), shapes
    )
    begins = "trtexec --onnx=m.onnx --saveEngine=m.plan --timingCacheFile=t.cache"
    assert " ".join(command) == f"{begins} {FLAGS}{ends}"


def test_the_command_that_times():
    command = time_command("trtexec", Path("m.plan"), Path("t.json"), {"x": (1, 3)}, 5)
    expected = "trtexec --loadEngine=m.plan --warmUp=500 --duration=5 --percentile=90,95,99 --exportTimes=t.json"
    assert " ".join(command) == f"{expected} --shapes=x:1x3"


@given(st.integers(8, 12), st.integers(0, 20))
def test_every_version_has_one_dialect_or_is_too_old(major, minor):
    version = Version(major, minor)
    if (major, minor) < (8, 6):
        with pytest.raises(BundleError, match="8.6 is the oldest"):
            dialect_of(version)
        return
    flags = dialect_of(version).flags
    assert set(flags) == {"fp32", "fp16", "bf16", "int8"}
    assert ("--fp16" in flags["fp16"]) is ((major, minor) < (10, 12))
    assert ("--stronglyTyped" in flags["int8"]) is ((10, 12) <= (major, minor) < (11, 0))


def test_opsets_that_a_parser_reads():
    require_opset(Version(8, 6, 2), 17)
    require_opset(Version(10, 3), 18)
    with pytest.raises(BundleError, match="8.6.2 reads ONNX opset 17 at most, the model is of 18"):
        require_opset(Version(8, 6, 2), 18)


@pytest.mark.parametrize(
    ("line", "rails", "total"),
    [
        (recorded.ORIN_NANO, {"VDD_IN": 4824, "VDD_CPU_GPU_CV": 518, "VDD_SOC": 1475}, 4824),
        (
            recorded.THOR_BUSY,
            {"VDD_GPU": 37528, "VDD_CPU_SOC_MSS": 18961, "VIN_SYS_5V0": 18331, "VIN": 87426},
            87426,
        ),
        (recorded.THOR_REST, {"VDD_GPU": -392, "VDD_CPU_SOC_MSS": 3924, "VIN_SYS_5V0": 5064, "VIN": 15004}, 15004),
        (recorded.AGX_ORIN, {"VDD_GPU_SOC": 15000, "VDD_CPU_CV": 3500, "VIN_SYS_5V0": 18500}, 37000),
        ("RAM 2/4MB VDD_GPU 5517mW VDD_CPU_SOC_MSS 7484mW VIN_SYS_5V0 6309mW", None, 5517 + 7484 + 6309),
        ("RAM 2/4MB POM_5V_IN 2532/2698 POM_5V_GPU 40/40", {"POM_5V_IN": 2532, "POM_5V_GPU": 40}, 2532),
        ("RAM 2/4MB VDD_SOC 1475mW/1475mW NC 0mW/0mW", {"VDD_SOC": 1475}, None),
        ("", {}, None),
    ],
)
def test_rails_and_the_boards_power(line, rails, total):
    reading = parse_line(line)
    assert rails is None or reading.rails_mw == rails
    assert reading.total_mw == total


def test_temperatures():
    assert parse_line(recorded.ORIN_NANO).temperatures_c["tj"] == 50.25
    assert "CPU" not in parse_line(recorded.ORIN_NANO).temperatures_c  # "1%@1420" is a clock


@given(st.text())
def test_no_line_breaks_the_parsers(text):
    parse_line(text)
    parse_power_mode(text)
    assert parse_clocks(text).state in ("locked", "free", "unknown")


@given(
    st.dictionaries(
        st.sampled_from(["VDD_IN", "VDD_SOC", "VDD_GPU", "VIN", "VIN_SYS_5V0", "POM_5V_IN"]),
        st.tuples(st.integers(-999, 99999), st.integers(-999, 99999)),
    ),
    st.sampled_from(["{0} {1}mW/{2}mW", "{0} {1}mW/{2}mW/{2}mW", "{0} {1}/{2}", "{0} {1}mW"]),
)
def test_what_is_written_is_read(rails, form):
    line = "RAM 1/2MB " + " ".join(form.format(name, now, mean) for name, (now, mean) in rails.items())
    assert parse_line(line).rails_mw == {name: now for name, (now, _) in rails.items()}


@given(st.floats(0, 50000), st.floats(0.1, 100), st.integers(2, 30))
def test_energy_of_constant_power_is_power_times_time(power, seconds, count):
    times = list(np.linspace(-1, seconds + 1, count))
    assert energy_mj(times, [power] * count, 0, seconds) == pytest.approx(power * seconds)


def test_energy_of_a_ramp_and_of_a_window_between_samples():
    assert energy_mj([0, 10], [0, 1000], 0, 10) == pytest.approx(5000)
    assert energy_mj([0, 10], [0, 1000], 4, 6) == pytest.approx(1000)
    assert energy_mj([2, 3], [100, 100], 0, 5) == pytest.approx(500)  # constant outside of the samples


def test_clocks_and_power_mode():
    assert parse_clocks(recorded.CLOCKS_LOCKED).state == "locked"
    assert parse_clocks(recorded.CLOCKS_FREE).state == "free"
    refused = parse_clocks(recorded.CLOCKS_REFUSED)
    assert (refused.state, "root user" in refused.lines[0]) == ("unknown", True)
    offline = recorded.CLOCKS_LOCKED.replace("cpu1:  Online=1", "cpu1:  Online=0").replace(
        "1728000 MaxFreq", "1 MaxFreq", 2
    )
    assert parse_clocks(offline).state == "free"  # cpu0 is online, and free
    assert parse_power_mode(recorded.POWER_MODE) == PowerMode("MAXN_SUPER", 2)
    assert parse_power_mode("NVPM ERROR: no such file") is None


def test_a_board_says_what_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_bytes(b"NVIDIA Jetson Orin Nano Developer Kit\0")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text("# R36 (release), REVISION: 4.3, GCID: 38968081\n")
    found = read_board(tmp_path)
    assert found["model"] == "NVIDIA Jetson Orin Nano Developer Kit"
    assert found["l4t"].startswith("# R36 (release), REVISION: 4.3")
    assert found["power_mode"] is None
    assert found["clocks"]["state"] == "unknown"
    assert read_board(tmp_path / "empty")["model"] is None


def test_throttling_is_seen_in_alerts_and_in_counters(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    device, monitor = tmp_path / "sys/class/thermal/cooling_device3", tmp_path / "sys/class/hwmon/hwmon1"
    device.mkdir(parents=True)
    monitor.mkdir(parents=True)
    (device / "type").write_text("gpu-throttle-alert\n")
    (device / "cur_state").write_text("0\n")
    (monitor / "oc3_event_cnt").write_text("7\n")
    script = tmp_path / "tegrastats"
    script.write_text("#!/bin/sh\nwhile true; do echo 'VDD_IN 1000mW/1000mW'; /bin/sleep 0.01; done\n")
    script.chmod(0o755)
    with Watch(tmp_path) as watch:
        pass
    assert (watch.alerts, watch.problem) == ([], "")
    with Watch(tmp_path) as watch:
        (device / "cur_state").write_text("1\n")
        (monitor / "oc3_event_cnt").write_text("8\n")
    assert watch.alerts == ["gpu-throttle-alert", "oc3_event_cnt"]
    script.unlink()
    with Watch(tmp_path) as watch:
        pass
    assert watch.problem.startswith("tegrastats did not start")


def test_times_of_trtexec():
    rows = [{"startComputeMs": 1.0, "endComputeMs": 1.5}, {"startComputeMs": 2.0, "endComputeMs": 3.0}]
    assert parse_times(json.dumps(rows)) == [0.5, 1.0]
    assert percentiles([0.5, 1.0])["mean_ms"] == 0.75
    for wrong in ("[]", "{}", '[{"computeMs": 1}]', "no json"):
        with pytest.raises(ValueError):  # noqa: PT011  json's own among them
            parse_times(wrong)


def _manifest(output: OutputSpec, speedup: float = 1.1) -> Manifest:
    entries = tuple(_entry(precision) for precision in ("fp32", "fp16", "int8"))
    return Manifest(
        name="n",
        target="jetson-thor",
        task=output.task,
        labels=output.names,
        units=output.units,
        scale=output.scale,
        ordinal=output.ordinal,
        ignore_label=output.ignore_label,
        input=InputSpec("x", "vector", (3,), "float32", None),
        reference_inputs="",
        fp32_outputs="",
        builds=entries,
        gate={"goals": {"min_int8_speedup": speedup}},
        files={},
        provenance={},
        licence="",
    )


def _entry(precision):
    from apps.runtime.manifest import BuildEntry

    return BuildEntry(precision, "tensorrt", precision, "", {}, "", 0.0, {})


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({"fp32": 3.0, "fp16": 2.0, "int8": 1.0}, "int8"),
        ({"fp32": 3.0, "fp16": 2.0, "int8": 1.9}, "fp16"),  # 1.05 x is not worth it
        ({"fp32": 3.0, "int8": 2.5}, "int8"),
        ({"int8": 2.5}, "int8"),
        ({}, None),
    ],
)
def test_int8_is_chosen_only_where_it_gains_enough(times, expected):
    manifest = _manifest(OutputSpec("classification", ("a", "b")))
    builds = {name: {"bench": {"valid": True, "latency": {"p90_ms": ms}}} for name, ms in times.items()}
    assert choose(manifest, builds) == expected
    throttled = {name: {"bench": {**said["bench"], "valid": False}} for name, said in builds.items()}
    assert choose(manifest, throttled) is None


@pytest.mark.parametrize(
    ("output", "shape"),
    [
        (OutputSpec("classification", tuple("abc")), (40, 3)),
        (OutputSpec("segmentation", tuple("abcd"), ignore_label=3), (6, 4, 5, 7)),
        (OutputSpec("regression", ("t", "v"), ("K", ""), scale=(0.5, 20.0)), (30, 2)),
    ],
)
def test_scores_are_those_of_the_gate(output, shape):
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=shape).astype(np.float32)
    target = rng.normal(size=shape)
    if output.task != "regression":
        target = rng.integers(0, len(output.names), (shape[0], *shape[2:]))
    scoring = scoring_of(output)
    expected = scoring.value(scoring.statistics(scoring.answers(outputs), target))
    assert score(outputs, target, _manifest(output)) == pytest.approx(expected)
