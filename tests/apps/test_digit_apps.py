"""The app on pictures of digits, on a bundle of a really trained (if hardly trained) student."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.conftest import mst_edge

RECIPE = {
    "name": "digits",
    "dataset": {"name": "av_digits", "options": {"pairs": 300, "snr_db": [10, 20], "image_noise": 0.1}},
    "distill": {"method": "lone", "compare": [], "epochs": {"collaborate": 2, "distill": 6}},
    "quantize": {"schemes": []},
    "measure": {"min_runs": 20, "min_seconds": 0.05},
}


def _trained(folder, modality):
    recipe = {**RECIPE, "student": {"modality": modality, "options": {"width": 0.5}}}
    (folder / "r.yaml").write_text(yaml.safe_dump(recipe))
    done = mst_edge("run", folder / "r.yaml", "--out", folder / "out")
    assert done.code == 0, done.err
    return folder / "out" / "bundles" / "cpu"


@pytest.fixture(scope="module")
def eye(tmp_path_factory):
    return _trained(tmp_path_factory.mktemp("eye"), "image")


def test_pictures_are_recognised(eye, tmp_path):
    page = np.full((90, 70), 220, np.uint8)
    page[20:70, 30:38] = 20
    Image.fromarray(page).save(tmp_path / "one.png")
    for more in ((), ("--as-is",)):
        done = mst_edge("app", "digits-camera", eye, tmp_path / "one.png", "--json", *more)
        assert done.code == 0, done.err
        assert json.loads(done.out)["label"] in "0123456789"


def test_files_that_are_not_there_are_told(eye, tmp_path):
    done = mst_edge("app", "digits-camera", eye, tmp_path / "none.png")
    assert done.code == 2
    assert "none.png: no such file" in done.err


def test_the_app_never_imports_torch(eye, tmp_path):
    Image.new("L", (20, 20), 200).save(tmp_path / "x.png")
    code = (
        "import sys; from apps.digits_camera import main\n"
        f"assert main([{str(eye)!r}, {str(tmp_path / 'x.png')!r}]) == 0\n"
        "assert not {'torch', 'sklearn', 'scipy', 'pydantic', 'typer'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
