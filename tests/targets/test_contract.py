"""The contract of targets and runtimes, written once and run for every one: ours, and one of another package.

Where the hardware is absent, a runtime's tests are skipped with what its probe says.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest

from apps.runtime import BundleError
from distill.datasets.spec import Kind, ModalitySpec
from mst_edge.core.errors import UserError
from mst_edge.stages.board import DEVICE_LIMITS
from mst_edge.stages.deploy import PARITY_LIMITS
from quantize.export import export_student, with_program
from quantize.numerics import LIMITS_DB
from quantize.schemes.base import SCHEMES as BY_NAME
from targets.board import BoardTarget
from targets.measure import Worker
from targets.spec import Build, load_build
from targets.target import Skipped, get_target, target_names
from tests.quantize.test_export_and_int8 import AUDIO, IMAGE, answers, make_student, raw_samples
from tests.quantizing import quantized
from tests.targets import third_party

TARGETS = [*target_names(), third_party.NAME]
RUNTIMES = [(name, runtime) for name in target_names() for runtime in get_target(name).runtime_classes]
RUNTIMES += [(third_party.NAME, third_party.RUNTIME)]
SLOW = {"aotinductor"}
# Of the outputs' deviation.
LIMITS = {"fp32": 1e-3, "tf32": 0.05, "fp16": 0.05, "bf16": 0.1, "bf16-whole": 0.2, "int8": 0.5, "int8-bf16": 0.5}
SCHEMES = {"int8": "int8-static", "fp16": "fp16", "int8-symmetric": "int8-symmetric"}


@pytest.fixture(scope="module", autouse=True)
def _somebody_elses(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        third_party.install(tmp_path_factory.mktemp("site"), patch)
        yield


@pytest.fixture(scope="module", params=[(AUDIO, "ds_cnn"), (IMAGE, "lenet5")], ids=["audio", "image"])
def variants(request, tmp_path_factory):
    """A student, and what is made of it; fp32 first."""
    spec, network = request.param
    student = make_student(spec, network)
    folder = tmp_path_factory.mktemp("variants")
    fp32, samples = with_program(student, export_student(student, folder / "fp32")), raw_samples(spec, 64)
    return student, [fp32, *(quantized(fp32, samples, folder / name, scheme) for name, scheme in SCHEMES.items())]


@pytest.fixture(params=RUNTIMES, ids="-".join)
def runtime(request):
    target, name = request.param
    found = get_target(target).runtime(name)
    probe = found.probe()
    if not probe.available:
        pytest.skip(probe.reason)
    if name in SLOW and "variants" in request.fixturenames:
        student, _ = request.getfixturevalue("variants")
        if student.spec.modality is not IMAGE:
            pytest.skip("compiles for ten seconds a build: one student stands for both")
    return found


@pytest.fixture
def rounded_programs(runtime, variants, tmp_path):
    """For a runtime that compiles torch programs, an int8 variant with one that it takes."""
    student, (fp32, *_) = variants
    raw = raw_samples(student.spec.modality, 64)
    names = [name for name in ("int8-pt2e", "int8-xnnpack") if BY_NAME.get(name).program in runtime.programs]
    return [quantized(fp32, raw, tmp_path / name, name, student=student, raw=raw[:8]) for name in names]


@pytest.fixture(scope="module")
def build_once(tmp_path_factory):
    """Builds in a folder of their own: some runtimes take seconds for each."""
    made = {}

    def build(runtime, variant, precision):
        key = (runtime.target, type(runtime), variant.folder, precision)
        if key not in made:
            made[key] = runtime.build(variant, precision, 1, tmp_path_factory.mktemp("builds") / "b")
        return made[key]

    return build


def ways(runtime, made):
    """Every variant that the runtime takes, in every precision that it runs here."""
    return [(v, precision) for v in made if not runtime.unfit(v) for precision in runtime.precisions(v)]


def first(runtime, made):
    """The build of fp32 that every runtime has: in fp32, or in what comes closest."""
    return next((v, precision) for v, precision in ways(runtime, made) if v.precision == "fp32")


def test_a_target_says_what_it_is_and_what_works_here():
    for name in TARGETS:
        target = get_target(name)
        assert target.spec.name == name
        assert target.spec.summary
        others = [target.runtime(one) for one in target.runtime_classes if one not in target.spec.runtimes]
        assert set(target.spec.runtimes) <= set(target.runtime_classes)
        assert not any(one.deployable for one in others)
        assert isinstance(target, BoardTarget) is not target.spec.on_host
        for probe in target.probe().values():
            # What works has a version and precisions; what does not says why, and in brackets what mends it.
            assert bool(probe.version) == bool(probe.precisions) == probe.available == (not probe.reason)
            assert probe.available or probe.reason.endswith(")")


@pytest.mark.parametrize("limits", [PARITY_LIMITS, DEVICE_LIMITS, LIMITS_DB], ids=["parity", "device", "layers"])
def test_whatever_precision_a_runtime_has_is_held_to_limits(limits):
    has = {precision for target, name in RUNTIMES for precision in type(get_target(target).runtime(name)).supports}
    assert has <= limits.keys()


def test_unknown_targets_and_runtimes_list_the_known():
    with pytest.raises(UserError, match="unknown target 'cup'; did you mean 'cpu'"):
        get_target("cup")
    with pytest.raises(UserError, match="unknown runtime of target cpu 'openvin'; did you mean 'openvino'"):
        get_target("cpu").runtime("openvin")
    for name in TARGETS:
        with pytest.raises(UserError, match=f"unknown runtime of target {name} 'nothing'"):
            get_target(name).runtime("nothing")


def test_what_is_built_elsewhere_runs_nothing_here(variants, tmp_path):
    made = variants[1]
    for name in TARGETS:
        target = get_target(name)
        if not isinstance(target, BoardTarget):
            continue
        with pytest.raises(UserError, match="not this machine"):
            target.require_host()
        for build in target.prepare(made, tmp_path / name):
            assert isinstance(build, (Build, Skipped))
            assert isinstance(build, Build) or build.reason
        assert list(target.build_all(made, 1, tmp_path / "none")) == []


def test_every_precision_agrees_with_torch_within_its_tolerance(runtime, variants, rounded_programs, build_once):
    """And a batch says of each row what the row says alone."""
    student, made = variants
    raw = raw_samples(student.spec.modality, 20, seed=4)
    expected = answers(student, raw)
    ran = set()
    for variant, precision in ways(runtime, [*made, *rounded_programs]):
        ran.add(precision)
        build = build_once(runtime, variant, precision)
        with runtime.load(build) as runner:
            batched = runner.run(raw)
            single = np.concatenate([runner.run(raw[i : i + 1]) for i in range(len(raw))])
            assert runner.load_ms > 0
            assert runner.last_ms > 0
            assert runner.device_ms is None or runner.device_ms > 0
        assert batched.dtype == np.float32
        difference = np.abs(batched - expected).max()
        assert difference <= LIMITS[precision] * expected.std(), (variant.name, precision)
        assert np.abs(batched - single).max() <= LIMITS[precision] * expected.std()
    assert ran == set(LIMITS) & set(runtime.probe().precisions)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A student that reads float pictures of one channel, and its fp32 variant."""
    student = make_student(ModalitySpec("depth", Kind.IMAGE, (12, 14, 1), "float32"), "small_cnn")
    return student, export_student(student, tmp_path_factory.mktemp("pictures") / "fp32")


def test_float_pictures_of_one_channel_run_in_every_precision(runtime, pictures, tmp_path):
    """OpenVINO moves their change of shape behind the scaling, where the precision no longer matters."""
    student, variant = pictures
    if runtime.programs:
        pytest.skip("is about how ONNX is rewritten")
    raw = raw_samples(student.spec.modality, 8, seed=4)
    for precision in runtime.precisions(variant):
        build = runtime.build(variant, precision, 1, tmp_path / f"build-{precision}")
        with runtime.load(build) as runner:
            assert np.abs(runner.run(raw) - answers(student, raw)).max() < 0.25 * answers(student, raw).std()


def test_builds_have_names_of_their_own(runtime, variants):
    names = [runtime.build_id(variant, precision) for variant, precision in ways(runtime, variants[1])]
    assert len(set(names)) == len(names) >= 1
    assert all(name.startswith(f"{runtime.name}-") for name in names)


def test_a_build_is_whole_on_disk_and_comes_back_with_its_facts(runtime, variants, build_once):
    variant, precision = first(runtime, variants[1])
    build = build_once(runtime, variant, precision)
    assert load_build(build.folder) == build
    assert build.deployable is runtime.deployable
    assert build.size_bytes == sum(file.stat().st_size for file in build.model_files()) > 0
    assert (build.id, build.target) == (f"{runtime.name}-{precision}", runtime.target)
    assert build.facts["runtime_version"] == runtime.probe().version
    assert build.facts["build_ms"] > 0
    assert build.facts["input"]["dtype"] == variant.input.dtype
    assert ("gpu" in build.facts) is (runtime.device == "GPU")
    assert build.options["threads"] == 1


def test_what_a_build_depends_on_is_the_same_twice_and_other_for_another(runtime, variants):
    keys = [json.dumps(runtime.depends_on(v, precision, 1)) for v, precision in ways(runtime, variants[1])]
    assert keys == [json.dumps(runtime.depends_on(v, precision, 1)) for v, precision in ways(runtime, variants[1])]
    assert len(set(keys)) == len(keys)


def test_the_same_outputs_come_of_a_new_process(runtime, variants, build_once, tmp_path):
    student, made = variants
    raw = raw_samples(student.spec.modality, 3, seed=6)
    np.save(tmp_path / "samples.npy", raw)
    build = build_once(runtime, *first(runtime, made))
    with runtime.load(build) as runner:
        here = np.concatenate([runner.run(raw[i : i + 1]) for i in range(len(raw))])
    files = {name: str(tmp_path / f"{name}.npy") for name in ("answers", "outputs")}
    with Worker(build, tmp_path / "samples.npy") as worker:
        worker.ask(do="predict", output=asdict(student.spec.output), **files)
    assert np.allclose(np.load(files["outputs"]), here, atol=1e-5 * np.abs(here).max())


def test_inputs_are_checked(runtime, variants, build_once):
    student, made = variants
    raw = raw_samples(student.spec.modality, 1)
    with runtime.load(build_once(runtime, *first(runtime, made))) as runner:
        with pytest.raises(ValueError, match="Received"):
            runner.run(raw[:, :-1])
        with pytest.raises(ValueError, match="Received"):
            runner.run(raw.astype(np.float64))
    with pytest.raises(ValueError, match="closed runner"):
        runner.run(raw)


def test_a_precision_that_does_not_fit_is_refused(runtime, variants, tmp_path):
    with pytest.raises(UserError, match="cannot run variant int8 in bf16"):
        runtime.build(variants[1][1], "bf16", 1, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_build_of_another_target_is_refused(runtime, variants, build_once):
    build = build_once(runtime, *first(runtime, variants[1]))
    with pytest.raises(UserError, match=f"build {build.id} is for target elsewhere, not {runtime.target}"):
        get_target(runtime.target).load(replace(build, target="elsewhere"))


def test_outputs_of_earlier_runs_do_not_change(runtime, variants, build_once):
    student, made = variants
    raw = raw_samples(student.spec.modality, 2, seed=5)
    with runtime.load(build_once(runtime, *first(runtime, made))) as runner:
        early = runner.run(raw[:1])
        kept = early.copy()
        runner.run(raw[1:])
        assert np.array_equal(early, kept)


def test_a_damaged_model_is_told_with_its_file(runtime, variants, build_once, tmp_path):
    shutil.copytree(build_once(runtime, *first(runtime, variants[1])).folder, tmp_path / "b")
    build = load_build(tmp_path / "b")
    build.model_path.write_bytes(build.model_path.read_bytes()[:100])
    with pytest.raises(BundleError, match=str(build.folder)), runtime.load(build):
        pass


HERE = [third_party.NAME, *(name for name in target_names() if get_target(name).spec.on_host)]


@pytest.mark.parametrize("variants", [(IMAGE, "lenet5")], ids=["image"], indirect=True)
@pytest.mark.parametrize("name", HERE)
def test_a_target_builds_everything_that_works_here(name, variants, tmp_path):
    target = get_target(name)
    made = list(target.build_all(variants[1][:2], 1, tmp_path))
    builds = [build for build in made if isinstance(build, Build)]
    assert {build.runtime for build in builds} == {n for n, probe in target.probe().items() if probe.available}
    assert len({build.folder for build in builds}) == len(builds)
    assert all(entry.reason for entry in made if isinstance(entry, Skipped))
    for build in builds:
        with target.load(build):
            pass


def test_somebody_elses_target_is_found_by_its_entry_point():
    assert third_party.NAME in target_names()
    assert get_target(third_party.NAME).spec.summary == "a box by Acme"
