"""A run that is killed, however often and wherever, ends with the weights of one that was not."""

from __future__ import annotations

import json
import random
import signal

import torch

from distill.training.checkpoint import load_tensors
from tests.conftest import write_vectors
from tests.distill.workers import run, train_mst_until


def test_ten_kills_at_random_steps_change_no_bit_of_the_weights(tmp_path):
    """Real processes, killed in all three stages; half of them with a checkpoint after every step."""
    data = write_vectors(tmp_path / "data")
    assert run(train_mst_until, data, tmp_path / "whole", None, 10.0) == 0
    steps = json.loads((tmp_path / "whole" / "steps.json").read_text())
    kills = sorted(random.Random(0).sample(range(1, len(steps)), 10))
    assert len({steps[kill][0] for kill in kills}) == 3
    for number, kill in enumerate(kills):
        ended = run(train_mst_until, data, tmp_path / "killed", steps[kill], 10.0 * (number % 2))
        assert ended == -signal.SIGKILL
    assert run(train_mst_until, data, tmp_path / "killed", None, 10.0) == 0
    left = json.loads((tmp_path / "killed" / "steps.json").read_text())
    assert steps[-len(left) :] == left
    assert len(left) < len(steps) - kills[-2]
    for phase in ("mst_collaborate", "mst_masks", "mst"):
        whole, killed = (load_tensors(tmp_path / run / phase / "final.safetensors")[0] for run in ("whole", "killed"))
        assert whole.keys() == killed.keys()
        for module, state in whole.items():
            assert all(torch.equal(state[name], killed[module][name]) for name in state), (phase, module)
        histories = [json.loads((tmp_path / run / phase / "history.json").read_text()) for run in ("whole", "killed")]
        assert histories[0] == histories[1]
