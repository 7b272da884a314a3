"""Augmentation: what each option does, who sees it, and that it is seeded."""

from __future__ import annotations

import pytest
import torch

from distill.augment import (
    ImageAugmentation,
    SequenceAugmentation,
    SpectrogramAugmentation,
    TextAugmentation,
    VectorAugmentation,
    VideoAugmentation,
    epoch_draws,
)
from distill.frozen import Frozen
from distill.lab import freeze
from distill.masks import MaskedTeacher, make_specialised
from distill.methods.base import METHODS
from distill.tokens import TokenShape
from distill.training.features import FeatureStore
from mst_edge.core.errors import UserError
from mst_edge.recipe import load_recipe
from mst_edge.stages.data import prepare
from tests.conftest import write_arrays, write_small_recipe
from tests.distill.methods.helpers import make_method, require_exact_resume, same
from tests.distill.test_training import make_lab, store  # noqa: F401

CPU = torch.device("cpu")
AMOUNTS = {
    "signal": SequenceAugmentation(time_shift=4, scale=0.2, jitter=0.3),
    "facts": VectorAugmentation(scale=0.1, jitter=0.2),
}


@pytest.fixture(scope="module")
def changing(store):  # noqa: F811
    """The store of the other tests, with augmentation of both modalities."""
    return FeatureStore(store.dataset, store.splits, store.frontends, AMOUNTS)


def _epoch(data, seed=(1, 0), batch_size=32, reads=("facts", "signal")):
    return list(data.shuffled("train", batch_size, seed, reads, CPU))


def _by_id(batches, name):
    return {int(i): row for batch in batches for i, row in zip(batch.ids, batch.inputs[name], strict=True)}


def _draws(augmentation, samples=64, seed=0):
    return torch.from_numpy(epoch_draws(augmentation, [seed], "x", samples))


# What each option does


def test_dropped_tokens_become_padding_and_the_rest_stays():
    ids = torch.arange(1, 201, dtype=torch.int32).expand(64, 200)
    out = TextAugmentation(drop=0.3)(ids, _draws(TextAugmentation()))
    gone = out == 0
    assert out.dtype == ids.dtype
    assert float(gone.float().mean()) == pytest.approx(0.3, abs=0.03)
    assert torch.equal(out[~gone], ids[~gone])
    assert not torch.equal(gone[0], gone[1])


def test_dropped_tokens_of_a_language_model_become_its_padding_and_the_first_stays():
    ids = torch.arange(2, 202, dtype=torch.int32).expand(64, 200)
    augmentation = TextAugmentation(drop=0.5).on(TokenShape(200, 300, padding=1, identity="theirs"))
    out = augmentation(ids, _draws(augmentation))
    gone = out == 1
    assert float(gone[:, 1:].float().mean()) == pytest.approx(0.5, abs=0.03)
    assert torch.equal(out[~gone], ids[~gone])
    assert not gone[:, 0].any()


def test_a_shift_moves_and_repeats_the_edge():
    ramp = torch.arange(20.0).expand(64, 3, 20)
    out = SequenceAugmentation(time_shift=3)(ramp, _draws(SequenceAugmentation()))
    steps = {int((ramp - moved)[0, 0, 10]) for moved in (o[None] for o in out)}
    assert steps == {-3, -2, -1, 0, 1, 2, 3}
    for row in out:
        step = int(10 - row[0, 10])
        assert row[0].tolist() == [min(max(t - step, 0), 19) for t in range(20)]


@pytest.mark.parametrize(("option", "axis"), [("time_mask", 3), ("frequency_mask", 2)])
def test_a_mask_sets_one_stripe_to_the_mean(option, axis):
    ones = torch.ones(200, 1, 12, 30)
    chosen = SpectrogramAugmentation(**{option: 5})
    out = chosen(ones, _draws(chosen, 200))
    other = 2 if axis == 3 else 3
    assert torch.equal(out.amin(dim=other), out.amax(dim=other))
    stripes = (out.amin(dim=other)[:, 0] == 0).int()
    assert set(stripes.sum(dim=1).tolist()) == {0, 1, 2, 3, 4, 5}
    assert (stripes.diff(dim=1).abs().sum(dim=1) <= 2).all()


def test_gain_is_one_number_per_spectrogram():
    x = torch.randn(64, 1, 12, 30)
    chosen = SpectrogramAugmentation(gain=0.5)
    gains = (chosen(x, _draws(chosen)) - x).flatten(1)
    assert torch.allclose(gains, gains[:, :1].expand_as(gains), atol=1e-5)
    assert gains.abs().max() <= 0.5
    assert gains[:, 0].std() > 0.2


@pytest.mark.parametrize(
    ("chosen", "shape"),
    [
        (SpectrogramAugmentation(noise=0.5), (1, 12, 30)),
        (ImageAugmentation(noise=0.5), (3, 16, 16)),
        (SequenceAugmentation(jitter=0.5), (3, 100)),
        (VectorAugmentation(jitter=0.5), (300,)),
    ],
)
def test_noise_is_white_and_up_to_the_amount(chosen, shape):
    out = chosen(torch.zeros(400, *shape), _draws(chosen, 400)).flatten(1)
    deviations = out.std(dim=1)
    assert 0.45 < deviations.max() < 0.6
    assert deviations.mean() == pytest.approx(0.25, abs=0.03)
    assert (out.mean(dim=1).abs() < 0.15).all()
    assert abs(float(torch.corrcoef(out[:2])[0, 1])) < 0.25


def test_pictures_move_by_whole_pixels():
    picture = torch.zeros(200, 1, 9, 9)
    picture[:, 0, 4, 4] = 1
    chosen = ImageAugmentation(shift=2)
    out = chosen(picture, _draws(chosen, 200))
    assert torch.allclose(out.amax(dim=(1, 2, 3)), torch.ones(200), atol=1e-4)
    places = {divmod(int(o.argmax()), 9) for o in out}
    assert places == {(4 + dy, 4 + dx) for dy in range(-2, 3) for dx in range(-2, 3)}


def test_half_of_the_pictures_are_mirrored():
    x = torch.randn(200, 2, 8, 8)
    chosen = ImageAugmentation(flip=True)
    out = chosen(x, _draws(chosen, 200))
    mirrored = [torch.allclose(o, i.flip(-1), atol=1e-5) for o, i in zip(out, x, strict=True)]
    plain = [torch.allclose(o, i, atol=1e-5) for o, i in zip(out, x, strict=True)]
    assert all(a != b for a, b in zip(mirrored, plain, strict=True))
    assert 70 < sum(mirrored) < 130


def test_a_crop_enlarges_a_part():
    ramp = torch.arange(16.0).expand(200, 1, 16, 16)
    chosen = ImageAugmentation(crop=0.5)
    out = chosen(ramp, _draws(chosen, 200))[:, 0, 8]
    slopes = (out[:, 10] - out[:, 5]) / 5
    assert slopes.min() < 0.6
    assert ((slopes > 0.45) & (slopes < 1.01)).all()
    assert out.min() >= 0
    assert out.max() <= 15


@pytest.mark.parametrize(
    ("chosen", "shape"), [(SequenceAugmentation(scale=0.2), (3, 8)), (VectorAugmentation(scale=0.2), (8,))]
)
def test_scale_multiplies_all_of_a_sample(chosen, shape):
    out = chosen(torch.ones(100, *shape), _draws(chosen, 100)).flatten(1)
    assert torch.equal(out.amin(dim=1), out.amax(dim=1))
    assert ((out >= 0.8) & (out <= 1.2)).all()
    assert out.std() > 0.08


def test_all_frames_of_a_video_move_alike():
    video = torch.randn(40, 3, 1, 8, 8).expand(-1, -1, 5, -1, -1)
    chosen = VideoAugmentation(shift=2, crop=0.2, flip=True)
    out = chosen(video, _draws(chosen, 40))
    assert out.shape == video.shape
    assert torch.allclose(out, out[:, :, :1].expand_as(out))
    assert not torch.allclose(out, video)


def test_with_label_maps_nothing_may_move_pixels():
    for option, amount in (("shift", 1), ("crop", 0.5), ("flip", True)):
        chosen = ImageAugmentation(**{option: amount})
        with pytest.raises(UserError, match=rf"x\.{option}: moves pixels, but not the label map"):
            chosen.check((3, 8, 8), "x", dense=True)
        chosen.check((3, 8, 8), "x")
    ImageAugmentation(noise=0.1).check((3, 8, 8), "x", dense=True)


# Who sees it


def test_nothing_is_changed_by_default(store):  # noqa: F811
    for batch in _epoch(store):
        plain = store.gather(batch.ids.numpy(), ("facts", "signal"), CPU)
        assert all(torch.equal(batch.inputs[name], plain.inputs[name]) for name in plain.inputs)
    assert not store.augments(("facts", "signal"))


def test_training_samples_are_changed_and_no_others(store, changing):  # noqa: F811
    for batch in _epoch(changing):
        plain = store.gather(batch.ids.numpy(), ("facts", "signal"), CPU)
        assert all(
            bool((batch.inputs[name] != plain.inputs[name]).flatten(1).any(dim=1).all()) for name in plain.inputs
        )
    for split in ("val", "test"):
        for one, other in zip(
            changing.in_order(split, 16, ("signal",), CPU), store.in_order(split, 16, ("signal",), CPU), strict=True
        ):
            assert torch.equal(one.inputs["signal"], other.inputs["signal"])


def test_what_happens_to_a_sample_depends_on_seed_and_epoch_alone(changing):
    """Not on the batch size, nor on which other modalities are read."""
    first = _by_id(_epoch(changing), "signal")
    for again in (_epoch(changing), _epoch(changing, batch_size=7), _epoch(changing, reads=("signal",))):
        assert all(torch.equal(first[i], row) for i, row in _by_id(again, "signal").items())
    for other in (_epoch(changing, seed=(1, 1)), _epoch(changing, seed=(2, 0))):
        assert not any(torch.equal(first[i], row) for i, row in _by_id(other, "signal").items())


def test_only_the_teacher_whose_modality_changes_runs_again(store, tmp_path):  # noqa: F811
    data = FeatureStore(store.dataset, store.splits, store.frontends, {"signal": AMOUNTS["signal"]})
    lab = make_lab(data, tmp_path)
    assert lab.frozen_logits(freeze(lab.new_teacher("facts"))).reads == ()
    assert lab.frozen_logits(freeze(lab.new_teacher("multimodal"))).reads == ("facts", "signal")
    assert make_method("kd", lab).workload()[-1].forward == ["multimodal"]
    assert make_method("kd", lab, teacher="facts").workload()[-1].forward == []
    assert METHODS.get("mst")(lab, METHODS.get("mst").Options()).workload()[-1].forward == ["multimodal"]


def test_a_frozen_teacher_is_asked_about_the_batch_that_the_student_sees(changing, tmp_path):
    lab = make_lab(changing, tmp_path)
    teacher = freeze(lab.new_teacher("facts"))
    answers = lab.frozen_logits(teacher)
    for batch in _epoch(changing):
        (said,) = answers(batch)
        assert torch.allclose(said, teacher(batch.inputs), atol=1e-6)
        # Autograd can use it, as it could not use what is left in inference mode.
        (torch.ones(3, requires_grad=True) * said).sum().backward()


def test_every_stage_of_mst_gets_changed_batches_that_hold_what_teachers_read(changing, tmp_path, monkeypatch):
    lab, seen = make_lab(changing, tmp_path), []
    plain = FeatureStore.shuffled

    def noted(self, *arguments, **options):
        for batch in plain(self, *arguments, **options):
            seen.append(batch)
            yield batch

    monkeypatch.setattr(FeatureStore, "shuffled", noted)
    method = METHODS.get("mst")(lab, METHODS.get("mst").Options())
    method.train()
    # Stages 1, 2 and 3: every batch holds what teachers need, since nothing could be kept.
    assert len(seen) == 5 * (1 + (2 + 1 + 2) - 1)
    assert all(set(batch.inputs) == {"facts", "signal"} for batch in seen)
    assert lab.histories["mst"][-1]["kd"] > 0


@pytest.mark.parametrize("mask", ["compact", "full"])
def test_the_shared_prefix_gives_the_logits_of_the_whole_masked_teacher(changing, tmp_path, mask):
    lab = make_lab(changing, tmp_path)
    teacher, passes = freeze(lab.new_teacher("multimodal")), []
    specialised = [make_specialised(teacher, at, mask, changing.shapes, "layers") for at in ("fused", "hidden")]
    for special in specialised:
        special.mask.eval()
    teacher.module.encoders["signal"].stem.register_forward_hook(lambda *_: passes.append(1))
    masked = MaskedTeacher(specialised)
    learning, frozen = masked.learning(lab.keeper), lab.keeper.answers(masked.frozen)
    batch = _epoch(changing)[0]
    expected = [special(batch.inputs) for special in specialised]
    for ask in (learning.logits, frozen):
        passes.clear()
        said = ask(batch)
        assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(said, expected, strict=True))
        assert len(passes) == 1  # one for both masks
    assert all(z.requires_grad for z in learning.logits(batch))
    assert not any(z.requires_grad for z in frozen(batch))


# That it is seeded


@pytest.mark.parametrize(
    ("name", "phase"), [("mst", "mst_masks"), ("kd", "kd"), ("rkd", "rkd"), ("fitnets", "fitnets_hints")]
)
def test_a_killed_run_goes_on_with_the_same_changes(changing, tmp_path, name, phase):
    require_exact_resume(name, changing, tmp_path, phase)


def test_a_student_trained_on_changed_samples_is_another_one(store, changing, tmp_path):  # noqa: F811
    lone = [make_lab(data, tmp_path / str(i)).lone_student() for i, data in enumerate((store, changing, changing))]
    assert not same(lone[0].module, lone[1].module)
    assert same(lone[1].module, lone[2].module)


# What the recipe says


def _data(folder, modalities):
    recipe = write_small_recipe(folder / "r.yaml", write_arrays(folder / "d"), modalities=modalities)
    return prepare(load_recipe(recipe), None)


def test_the_recipe_names_augmentations_beside_the_front_end(tmp_path):
    data = _data(tmp_path, {"signal": {"augment": {"time_shift": 3, "jitter": 0.1}}})
    assert data.augmentations == {"signal": SequenceAugmentation(3, 0.0, 0.1), "facts": VectorAugmentation()}
    assert not data.augmentations["facts"].is_on


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"time_shfit": 3}, r"modalities\.signal\.augment: unknown option 'time_shfit'; did you mean 'time_shift'"),
        ({"flip": True}, r"modalities\.signal\.augment: unknown option 'flip'"),
        (
            {"time_shift": -1},
            r"modalities\.signal\.augment\.time_shift: must be at least 0 and at most 39, received -1",
        ),
        ({"time_shift": 40}, r"at most 39, received 40"),
        ({"scale": 1.5}, r"modalities\.signal\.augment\.scale: must be at least 0 and at most 0.99"),
        ({"jitter": "much"}, r"modalities\.signal\.augment\.jitter"),
        ([1], r"modalities\.signal\.augment: expected keys and values"),
    ],
)
def test_wrong_amounts_are_told(tmp_path, said, says):
    with pytest.raises(UserError, match=says):
        _data(tmp_path, {"signal": {"augment": said}})


def test_an_augmented_function_is_never_kept(changing, tmp_path):
    lab = make_lab(changing, tmp_path)
    model = freeze(lab.new_teacher("facts"))
    frozen = Frozen("x", lambda inputs: (model(inputs),), model.reads, [model.module])
    assert lab.keeper.answers(frozen).kept is None
    assert not lab.keeper.keeps(1, model.reads)
