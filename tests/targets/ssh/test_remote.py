"""A small bundle goes to a real OpenSSH server, which runs its steps; and every way in which that goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from apps.runtime.manifest import read_manifest
from mst_edge.core.errors import UserError
from mst_edge.core.files import sha256_file
from targets.ssh.address import parse_address
from targets.ssh.link import reach
from targets.ssh.remote import COURIER, Remote
from tests.conftest import ROOT
from tests.sshd import WHY_NOT, Server, running

needs_server = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)

# Each step does its work once, and says so each time; one waits where its file in the home folder says so.
STEP = """\
import json, pathlib, sys, time
home, name = pathlib.Path.home(), pathlib.Path(__file__).stem
print(f"{name} begins")
while (home / f"hold-{name}").exists():
    time.sleep(0.02)
if (home / f"fail-{name}").exists():
    print("note: all is well", (home / f"fail-{name}").read_text(), sep="\\n", file=sys.stderr)
    sys.exit(2)
if not pathlib.Path(f"{name}.done").exists():
    with (home / "ran").open("a") as ran:
        ran.write(name + "\\n")
    pathlib.Path(f"{name}.done").touch()
pathlib.Path("outputs").mkdir(exist_ok=True)
pathlib.Path("result.json").write_text(json.dumps({"found": name}))
pathlib.Path("outputs/one.npy").write_bytes(b"numbers")
print(f"{name} ends")
"""
STEPS = {"build": ("build.py",), "check": ("check.py",), "bench": ("bench.py",)}


class Heard:
    """What a person sees; ``do`` at the first line that holds ``when``."""

    def __init__(self, when="", do=lambda: None):
        self.lines, self._when, self._do = [], when, do

    def __call__(self, text):
        self.lines.append(text)
        if self._when and self._when in text:
            self._when = ""
            self._do()


@pytest.fixture
def server(tmp_path, monkeypatch):
    with running(tmp_path / "server", PATH=os.environ["PATH"]) as server:
        (tmp_path / "server" / "bin" / "python3").symlink_to(sys.executable)
        monkeypatch.setenv("PATH", f"{server.folder / 'bin'}:{os.environ['PATH']}")
        server.set(PATH=os.environ["PATH"])
        yield server


@pytest.fixture
def bundle(tmp_path):
    """A bundle's folder with three steps and one model, large enough to be cut in its middle."""
    folder = tmp_path / "bundle"
    files = {f"{name}.py": STEP.encode() for name in STEPS}
    files |= {COURIER: (ROOT / COURIER).read_bytes(), "models/one/model.onnx": bytes(3 << 20)}
    files |= {f"examples/it's {k}; $(x).txt": bytes([k]) for k in range(3)}
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    for name in ("reference/inputs.npy", "reference/fp32.npy", "reference/one.npy", "evaluation/fp32.npy"):
        (folder / name).parent.mkdir(exist_ok=True)
        np.save(folder / name, np.zeros(3, np.float32))
    write_manifest(folder)
    return folder


def write_manifest(folder):
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "manifest.json"]
    manifest = {
        **{
            "format": "mst-edge-bundle",
            "version": 3,
            "name": "It's a net",
            "target": "board",
            "task": "classification",
        },
        **{"labels": ["a", "b"], "units": [], "scale": [], "ignore_label": None, "gate": {}, "provenance": {}},
        "input": {"name": "x", "kind": "vector", "shape": [3], "dtype": "float32", "sample_rate_hz": None},
        **{"reference_inputs": "reference/inputs.npy", "fp32_outputs": "reference/fp32.npy", "licence": "none"},
        "builds": [
            {"id": "one", "runtime": "none", "precision": "fp32", "model": "models/one/model.onnx", "options": {}}
            | {"reference_outputs": "reference/one.npy", "tolerance": 0.1, "expected": {}}
        ],
        "files": {path.relative_to(folder).as_posix(): sha256_file(path) for path in paths},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def deploy(server: Server, bundle: Path, heard=None):
    heard = heard or Heard()
    address = parse_address(server.address)
    Remote(bundle, read_manifest(bundle), address, "the same command", heard, heard).deploy(
        STEPS, ("models/{build}/log",)
    )
    return heard.lines


def refused(server, bundle, heard=None):
    """The one line that a person reads."""
    with pytest.raises(UserError) as error:
        deploy(server, bundle, heard)
    assert "\n" not in str(error.value)
    return str(error.value)


@needs_server
def test_it_is_sent_built_checked_measured_and_brought_home_once(server, bundle):
    lines = deploy(server, bundle)
    assert server.ran() == ["build", "check", "bench"]
    assert server.bundle.name == f"It-s-a-net-board-{sha256_file(bundle / 'manifest.json')[:12]}"
    assert [line for line in lines if "begins" in line] == [f"{name}: {name} begins" for name in STEPS]
    assert json.loads((bundle / "result.json").read_text()) == {"found": "bench"}
    assert (bundle / "outputs/one.npy").read_bytes() == b"numbers"
    assert (bundle / "logs/check.out").read_text() == "check begins\ncheck ends\n"
    again = deploy(server, bundle)
    assert any(line == "sent 0 files, 0.0 MB; 12 were there already" for line in again)
    assert server.ran() == ["build", "check", "bench"]


@needs_server
@pytest.mark.parametrize(
    "when", ["push 3 of 12", "push 12 of 12", "build: build begins", "bench: bench begins", "pull from"]
)
def test_a_cut_connection_costs_nothing_that_was_done(server, bundle, when):
    step = when.partition(" ")[0].strip(":")
    hold = server.home / f"hold-{step}"
    hold.touch()
    said = refused(server, bundle, Heard(when, server.wire.cut))
    hold.unlink()
    assert said.startswith(f"{server.address}, {step}: the connection was lost (")
    assert said.endswith("what is done stays done; go on with: the same command")
    lines = deploy(server, bundle)
    if step == "push":
        (sent,) = (line for line in lines if line.startswith("sent "))
        there = int(when.split()[1]) - 1
        assert sent.endswith((f"; {there - 1} were there already", f"; {there} were there already"))
    else:
        assert "sent 0 files, 0.0 MB; 12 were there already" in lines
    assert server.ran() == ["build", "check", "bench"]
    assert json.loads((bundle / "result.json").read_text()) == {"found": "bench"}
    assert not [path for path in server.bundle.rglob("*") if path.name.endswith(".part")]


@needs_server
def test_a_step_outlives_its_connection_and_the_next_one_waits_for_its_end(server, bundle):
    (server.home / "hold-build").touch()
    assert "build: the connection was lost" in refused(server, bundle, Heard("build begins", server.wire.cut))
    lines = deploy(server, bundle, Heard("build is still at work there", (server.home / "hold-build").unlink))
    assert any("build ends" in line for line in lines)
    assert server.ran() == ["build", "check", "bench"]


@needs_server
def test_a_board_that_goes_silent_is_an_error_and_no_hang(server, bundle):
    (server.home / "hold-check").touch()
    said = refused(server, bundle, Heard("check begins", server.wire.silent.set))
    assert f"{server.address}, check: the connection was lost (Timeout, server" in said
    assert "not responding" in said
    server.wire.silent.clear()
    server.wire.cut()
    deploy(server, bundle, Heard("check is still at work there", (server.home / "hold-check").unlink))
    assert server.ran() == ["build", "check", "bench"]


@needs_server
def test_a_server_that_is_stopped_mid_run_and_one_that_is_not_there(server, bundle):
    def stop():
        server.process.terminate()
        server.process.wait()
        server.wire.cut()

    (server.home / "hold-bench").touch()
    assert "bench: the connection was lost" in refused(server, bundle, Heard("bench begins", stop))
    said = refused(server, bundle)
    assert f"{server.address}, connecting: cannot be reached (" in said
    (server.home / "hold-bench").unlink()
    with pytest.raises(UserError, match="cannot be reached"):
        reach(parse_address(server.address))


@needs_server
def test_ctrl_c_leaves_the_step_at_work_and_both_sides_resumable(server, bundle):
    (server.home / "hold-build").touch()

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        deploy(server, bundle, Heard("build begins", interrupt))
    (server.home / "hold-build").unlink()
    deploy(server, bundle)
    assert server.ran() == ["build", "check", "bench"]


@needs_server
def test_an_unknown_host_key_and_a_changed_one_send_nothing(server, bundle):
    port = server.wire.port
    server.know()
    said = refused(server, bundle)
    assert said == (
        f"{server.address}, connecting: its host key is not known here; connect once by hand and compare the "
        f"fingerprint: ssh -p {port} {server.address.partition(':')[0]}"
    )
    server.know("other")
    said = refused(server, bundle)
    assert "its host key is another than the one known" in said
    assert f"ssh-keygen -f {server.folder / 'known_hosts'} -R '[127.0.0.1]:{port}'" in said
    assert not server.cache.exists()
    # A configuration that trusts anybody changes nothing.
    with (server.folder / "ssh_config").open("a") as config:
        config.write("StrictHostKeyChecking no\nNoHostAuthenticationForLocalhost yes\n")
    assert "its host key is another" in refused(server, bundle)


@needs_server
def test_a_key_that_the_board_does_not_take(server, bundle):
    shutil.copy(server.folder / "other", server.folder / "user")
    said = refused(server, bundle)
    assert "takes no key of yours, and passwords are not asked for" in said
    assert f"ssh-copy-id -p {server.wire.port} " in said


@needs_server
def test_a_full_disk_is_named_and_the_rest_goes_on_later(server, bundle):
    server.set("ulimit -f 1024")  # blocks of 512 or 1024 bytes: less than the model
    said = refused(server, bundle)
    assert f"{server.address}, push: " in said
    assert "the disk is full; free some space" in said
    assert not [path for path in server.bundle.rglob("*") if path.name.endswith(".part")]
    server.set()
    (sent,) = (line for line in deploy(server, bundle) if line.startswith("sent "))
    assert not sent.startswith("sent 12")
    assert server.ran() == ["build", "check", "bench"]


@needs_server
def test_a_step_that_cannot_go_on_says_why_and_where_its_log_is(server, bundle):
    (server.home / "fail-check").write_text("error: trtexec: is not here")
    said = refused(server, bundle)
    there = server.bundle / "logs" / "check.err"
    assert said == (
        f"{server.address}, check: trtexec: is not here; its log: {there}, here {bundle / 'logs/check.err'}; "
        "go on with: the same command"
    )
    assert (bundle / "logs/check.err").read_text() == "note: all is well\nerror: trtexec: is not here\n"
    assert not (bundle / "result.json").exists()  # nor would one of before be touched
    (server.home / "fail-check").unlink()
    deploy(server, bundle)
    assert server.ran() == ["build", "check", "bench"]


@needs_server
def test_whatever_is_not_in_the_manifest_is_not_executed(server, bundle):
    def plant(path, content="import pathlib; (pathlib.Path.home() / 'bad').touch()\n"):
        (server.bundle / path).parent.mkdir(parents=True, exist_ok=True)
        (server.bundle / path).write_text(content)

    # Changed once the push was over: the step does not run.
    said = refused(server, bundle, Heard("sent ", lambda: plant("check.py")))
    assert "check.py was changed: nothing is executed; the same command mends it" in said
    deploy(server, bundle)
    # What Python would import instead, or beside: a module, an extension, a compiled copy.
    for path in ("json.py", "runtime/numpy.cpython-310-aarch64-linux-gnu.so", "late.pyc"):
        plant(path)
        assert f"{path} is not in the manifest: nothing is executed; rm -r {server.bundle}" in refused(server, bundle)
        (server.bundle / path).unlink()
    plant("__pycache__/check.cpython-310.pyc")
    deploy(server, bundle)
    assert not (server.bundle / "__pycache__").exists()
    # A link that leads elsewhere.
    (server.bundle / "build.py").unlink()
    (server.home / "build.py").write_text((bundle / "build.py").read_text())
    (server.bundle / "build.py").symlink_to(server.home / "build.py")
    assert "is reached by a link: nothing is executed" in refused(server, bundle)
    assert not (server.home / "bad").exists()


@needs_server
def test_what_is_said_and_sent_by_a_stranger_is_not_believed(server, bundle):
    home = bundle / "result.json"

    def answering(program):
        """A board whose python3 runs something else than what it is sent."""
        fake = server.folder / "fake"
        fake.mkdir(exist_ok=True)
        (fake / "python3").write_text(f"#!{sys.executable} -u\nimport sys\n{program}\nsys.stdin.read()\n")
        (fake / "python3").chmod(0o755)
        server.set(PATH=f"{fake}:{os.environ['PATH']}")
        return refused(server, bundle)

    hello = 'print("motd of the board")\nprint(\'{"courier": 1}\')\n'
    received = (
        hello + 'print(\'{"wanted": [], "free": 1}\\n{"received": 1}\')\n' + 'print(\'{"ended": 0}\\n\' * 3, end="")\n'
    )
    assert "says something else than was agreed" in answering(hello + "print('{\"wanted')")
    assert "asks for files that the bundle has not" in answering(
        hello + 'print(\'{"wanted": ["/etc/passwd"], "free": 1}\')'
    )
    for name, size in (("../../.profile", 4), ("logs/other.err", 4), ("result.json", 1 << 30), ("result.json", -1)):
        line = json.dumps({"file": name, "size": size, "sha256": ""})
        assert f"sends {name!r} of {size} bytes, which was not asked for" in answering(f"{received}print({line!r})")
    line = json.dumps({"file": "result.json", "size": 4, "sha256": "0" * 64})
    assert "result.json was changed on the way" in answering(f"{received}print({line!r} + '\\n1234', end='')")
    assert not home.exists()


@needs_server
def test_nothing_is_decided_by_the_time_of_day(server, bundle):
    deploy(server, bundle)
    for path, when in zip(sorted(server.bundle.rglob("*")), [0, 4102444800] * 20, strict=False):
        os.utime(path, (when, when))
    lines = deploy(server, bundle)
    assert "sent 0 files, 0.0 MB; 12 were there already" in lines
    assert server.ran() == ["build", "check", "bench"]


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("board", ["--", "board"]),
        ("me@board.local", ["-l", "me", "--", "board.local"]),
        ("me@10.0.0.7:2222", ["-l", "me", "-p", "2222", "--", "10.0.0.7"]),
        ("me@[fe80::1%eth0]:22", ["-l", "me", "-p", "22", "--", "fe80::1%eth0"]),
    ],
)
def test_an_address_is_what_people_write(text, arguments):
    assert list(parse_address(text).arguments) == arguments
    assert str(parse_address(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-oProxyCommand=touch x",
        "me@-oProxyCommand=x",
        "-l@board",
        "a b",
        "board;ls",
        "me@board:",
        "me@board:70000",
        "$(ls)@board",
        "board:22:22",
        "ssh://board",
        "me@bo'ard",
        "me@board\n",
        "%h@board",
    ],
)
def test_anything_else_is_refused_before_ssh_sees_it(text):
    with pytest.raises(UserError, match="--ssh: expected user@host"):
        parse_address(text)


def test_no_script_of_a_board_asks_for_the_time_of_day():
    for path in (ROOT / "apps" / "runtime" / "board").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not any(word in text for word in ("time.time(", "datetime", "st_mtime", "localtime")), path
