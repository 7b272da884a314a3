"""``mst-edge app serve`` as it is typed: starts, says where, stops; and what it does not start with."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from tests.apps.paper_bundles import eye, reader
from tests.apps.sockets import ask
from tests.conftest import ROOT, mst_edge


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return reader(tmp_path_factory.mktemp("reader") / "bundle")


def _start(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "mst_edge", "app", "serve", *map(str, arguments), "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_stopped(bundle, number):
    with _start(bundle, "--build", "b-int8") as process:
        ready = json.loads(process.stdout.readline())
        assert ready["builds"] == ["b-int8"]
        port = int(re.fullmatch(r"http://127\.0\.0\.1:(\d+)/", ready["url"])[1])
        assert ask(port, "GET", "/api/bundles")[0] == 200
        taken = mst_edge("app", "serve", bundle, "--port", port)
        assert (taken.code, taken.out) == (2, "")
        assert taken.err.strip() == f"error: 127.0.0.1: port {port} is in use; give another with --port"
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "stopped\n")
    assert json.loads(out)["path"] == "/api/bundles"


def test_beyond_this_machine_a_token_is_made(bundle):
    with _start(bundle, "--host", "0.0.0.0") as process:
        url = json.loads(process.stdout.readline())["url"]
        port, token = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/#token=([\w-]{32})", url).groups()
        assert ask(int(port), "GET", "/api/bundles")[0] == 401
        assert ask(int(port), "GET", "/api/bundles", Authorization=f"Bearer {token}")[0] == 200
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--build", "none"], "no bundle has a build none"),
        (["--port", "99999"], "must be from 0 to 65535"),
        (["--host", "203.0.113.1"], "cannot listen at port"),
    ],
)
def test_what_cannot_be_served_is_told_in_one_line(bundle, arguments, says):
    done = mst_edge("app", "serve", bundle, *arguments)
    assert (done.code, done.err.count("\n"), done.out) == (2, 1, "")
    assert says in done.err


def test_a_token_that_can_be_guessed_is_refused(bundle):
    done = mst_edge("app", "serve", bundle, MST_EDGE_TOKEN="secret")
    assert (done.code, done.err) == (2, "error: MST_EDGE_TOKEN: is shorter than 16 characters\n")


def test_a_build_that_this_device_runs_wrongly_is_not_served(tmp_path):
    folder = eye(tmp_path / "eye")
    reference = folder / "reference" / "a-fp32.npy"
    np.save(reference, np.load(reference) + 1)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["reference/a-fp32.npy"] = hashlib.sha256(reference.read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    done = mst_edge("app", "serve", folder)
    assert done.code == 2
    assert "a-fp32 is off by 1 on the reference inputs" in done.err
