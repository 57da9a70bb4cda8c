"""Map generation against the plain loop over images, groups, scales and flips; predicted labels; side effects."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import avg_pool2d, interpolate

from gwsss_fast.data.records import Record, Split
from gwsss_fast.data.samplers import GroupSampler
from gwsss_fast.errors import GwsssError
from gwsss_fast.GroupGNN import GroupGNN
from gwsss_fast.labels.maps import generate_maps, group_maps, predict_labels
from gwsss_fast.models.backbones import build_backbone
from gwsss_fast.models.group_classifier import GroupClassifier

MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])
SHAPES = [(40, 56), (64, 48), (33, 41), (50, 50), (37, 64)]  # (H, W)
LABELS = [(0,), (0, 2), (1,), (1, 2), (0, 1, 2)]
OPTIONS = {"size": 32, "scales": (0.5, 1.0, 1.5), "flip": True}


class Colours(nn.Module):
    """Three maps at stride 8: the colour channels. The graph's maps also see the group's mean, so partners matter."""

    def __init__(self):
        super().__init__()
        self.offset = nn.Parameter(torch.tensor([0.3, -0.2, 0.1]))
        self.batches = []

    def forward(self, images):
        assert not self.training
        assert not torch.is_grad_enabled()
        self.batches.append(tuple(images.shape))
        maps = avg_pool2d(images.flatten(0, 1), 8) + self.offset[:, None, None]
        maps = maps.unflatten(0, images.shape[:2])
        tilt = torch.linspace(0, 1, maps.shape[-1])  # not symmetric, so that flips matter
        graph = maps * tilt - 0.5 * maps.mean((1, 3, 4), keepdim=True)
        return SimpleNamespace(
            initial_maps=maps, maps=graph, initial_logits=maps.mean((-2, -1)), logits=graph.mean((-2, -1))
        )


class Groups:
    """A sampler whose groups are given: one list of groups a round."""

    def __init__(self, *rounds):
        self.rounds = rounds

    def cover(self, round):
        return np.array(self.rounds[round])


@pytest.fixture
def split(tmp_path):
    rng = np.random.default_rng(0)
    records = []
    for index, ((height, width), labels) in enumerate(zip(SHAPES, LABELS, strict=True)):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 7, 3), dtype=np.uint8))
        path = tmp_path / f"{index}.png"
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(path)
        records.append(Record(str(index), path, labels=labels))
    return Split("train", ("red", "green", "blue"), tuple(records))


def by_the_book(model, split, groups, index, keys):
    """(initial, graph, ensemble) of one image over all groups that hold it."""
    height, width = SHAPES[index]
    totals = [0, 0]
    draws = 0
    for group in groups:
        if index not in group:
            continue
        draws += 1
        for scale in OPTIONS["scales"]:
            side = round(OPTIONS["size"] * scale)
            images = []
            for member in group:
                with Image.open(split.records[member].image) as image:
                    small = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR), np.float64) / 255
                images.append(torch.tensor((small - MEAN) / STD, dtype=torch.float32).permute(2, 0, 1))
            images = torch.stack(images)[None]
            for view in (images, images.flip(-1)):
                with torch.no_grad():
                    out = model(view)
                for readout, maps in enumerate((out.initial_maps, out.maps)):
                    maps = maps[0, group.index(index)][list(keys)].relu()
                    maps = maps if view is images else maps.flip(-1)
                    full = interpolate(maps[None], (height, width), mode="bilinear", align_corners=False)[0]
                    totals[readout] = totals[readout] + full.numpy().astype(np.float64)
    initial, graph = ((t / draws) / ((t / draws).max((1, 2), keepdims=True) + 1e-5) for t in totals)
    return initial, graph, (initial + graph) / 2


@pytest.mark.parametrize("rounds", [([[0, 1], [2, 3], [4, 1]],), ([[0, 1], [2, 3], [4, 1]], [[4, 0], [2, 1], [3, 0]])])
def test_maps_equal_the_plain_loop(split, rounds):
    model = Colours().train()
    found = dict(generate_maps(model, split, Groups(*rounds), rounds=len(rounds), groups=2, **OPTIONS))
    assert sorted(record.id for record in found) == list("01234")
    model.eval()
    for record, cams in found.items():
        index = int(record.id)
        assert cams.keys.tolist() == list(LABELS[index])
        expected = by_the_book(model, split, [group for part in rounds for group in part], index, LABELS[index])
        for got, want in zip((cams.initial, cams.graph, cams.ensemble), expected, strict=True):
            assert got.shape == (len(LABELS[index]), *SHAPES[index])
            assert got.dtype == np.float32
            assert got == pytest.approx(want, abs=2e-5)
        assert cams.initial.max() == pytest.approx(1, abs=1e-3)


def test_an_image_is_yielded_as_soon_as_its_last_group_is_through(split):
    order = [record.id for record, _ in generate_maps(Colours(), split, Groups([[0, 1], [1, 2], [3, 4]]), **OPTIONS)]
    assert order == ["0", "1", "2", "3", "4"]
    steps = generate_maps(Colours(), split, Groups([[0, 1], [2, 3], [4, 0]]), groups=1, **OPTIONS)
    assert [record.id for record, _ in steps] == ["1", "2", "3", "4", "0"]


def test_workers_and_batching_do_not_change_the_maps(split):
    sampler = GroupSampler(split.labels, 2, "greedy", seed=3)
    one = {r.id: c for r, c in generate_maps(Colours(), split, sampler, groups=1, rounds=2, **OPTIONS)}
    two = {r.id: c for r, c in generate_maps(Colours(), split, sampler, groups=3, rounds=2, workers=1, **OPTIONS)}
    assert one.keys() == two.keys()
    for name, cams in one.items():
        assert cams.ensemble == pytest.approx(two[name].ensemble, abs=1e-5)


def test_mode_gradients_and_random_state_are_left_alone(split):
    model = Colours().train()
    torch.manual_seed(7)
    state = torch.get_rng_state()
    for _ in generate_maps(model, split, Groups([[0, 1], [2, 3], [4, 0]]), **OPTIONS):
        assert model.training
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    assert model.batches[0] == (3, 2, 3, 16, 16)
    assert len(model.batches) == 6  # three scales, each also mirrored


def test_without_message_passing_both_readouts_are_one(split):
    torch.manual_seed(0)
    model = GroupClassifier(build_backbone("tiny", "none"), GroupGNN(128, 3, steps=0))
    sampler = GroupSampler(split.labels, 2, seed=0)
    for record, cams in generate_maps(model, split, sampler, size=32, scales=(1.0,), flip=False):
        assert np.array_equal(cams.initial, cams.graph)
        assert np.array_equal(cams.initial, cams.ensemble)
        assert cams.ensemble.shape == (len(record.labels), *SHAPES[int(record.id)])


def test_group_size_of_the_real_model_matters_only_for_the_graph(split):
    torch.manual_seed(0)
    model = GroupClassifier(build_backbone("tiny", "none"), GroupGNN(128, 3, steps=1, gate_bias=1.0))
    images = [Image.open(record.image).convert("RGB") for record in split.records[:3]]
    together = group_maps(model, images, LABELS[:3], size=64, scales=(1.0,))
    alone = group_maps(model, images[:1], LABELS[:1], size=64, scales=(1.0,))
    assert together[0].initial == pytest.approx(alone[0].initial, abs=1e-4)
    assert np.abs(together[0].graph - alone[0].graph).max() > 1e-3


def test_group_maps_equal_generated_maps(split):
    model = Colours()
    found = dict(generate_maps(model, split, Groups([[0, 1], [2, 3], [4, 1]]), **OPTIONS))
    images = [Image.open(split.records[index].image).convert("RGB") for index in (2, 3)]
    for cams, index in zip(group_maps(model, images, LABELS[2:4], **OPTIONS), (2, 3), strict=True):
        assert np.array_equal(cams.ensemble, found[split.records[index]].ensemble)


class Fixed(nn.Module):
    """The same logits for every image, whatever it shows."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, images):
        logits = self.logits.expand(*images.shape[:2], len(self.logits))
        maps = logits[..., None, None].expand(*logits.shape, 4, 4)
        return SimpleNamespace(logits=logits, initial_logits=logits, maps=maps, initial_maps=maps)


@pytest.mark.parametrize(("logits", "expected"), [([-2.0, -1.0, -3.0], [1]), ([0.5, -1.0, 2.0], [0, 2])])
def test_predicted_labels_take_the_likely_classes_and_at_least_one(split, logits, expected):
    groups = Groups([[0, 1], [2, 3], [4, 0]])
    for _, cams in generate_maps(Fixed(logits), split, groups, predicted_labels=True, **OPTIONS):
        assert cams.keys.tolist() == expected
    rows = predict_labels(Fixed(logits), split, size=32, batch=2)
    assert rows.shape == (5, 3)
    assert all(np.flatnonzero(row).tolist() == expected for row in rows)


def test_predicted_labels_of_single_images_follow_the_picture(split):
    """The initial readout of `Colours` is the mean colour, which the test reads off the picture by itself."""
    rows = predict_labels(Colours(), split, size=32, flip=False)
    for record, row in zip(split.records, rows, strict=True):
        with Image.open(record.image) as image:
            mean = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR), np.float64).mean((0, 1)) / 255
        score = (mean - MEAN) / STD + [0.3, -0.2, 0.1]
        expected = score > 0
        expected[score.argmax()] = True
        assert row.tolist() == expected.astype(int).tolist()


def test_an_image_without_labels_has_no_maps(split):
    bare = Split("val", split.classes, tuple(Record(r.id, r.image) for r in split.records))
    for record, cams in generate_maps(Colours(), bare, Groups([[0, 1], [2, 3], [4, 0]]), **OPTIONS):
        assert cams.ensemble.shape == (0, *SHAPES[int(record.id)])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_one_error_naming_it(split, workers):
    Path(split.records[3].image).write_bytes(b"not an image")
    with pytest.raises(GwsssError, match=r"3\.png") as caught:
        list(generate_maps(Colours(), split, Groups([[0, 1], [2, 3], [4, 0]]), workers=workers, **OPTIONS))
    assert "Traceback" not in str(caught.value)


def test_options_without_sense(split):
    groups = Groups([[0, 1], [2, 3], [4, 0]])
    for changed, message in (
        ({"scales": ()}, "scales"),
        ({"rounds": 0}, "rounds"),
        ({"precision": "fp8"}, "fp32, bf16, fp16"),
    ):
        with pytest.raises(GwsssError, match=message):
            next(generate_maps(Colours(), split, groups, **{**OPTIONS, **changed}))
    with pytest.raises(GwsssError, match="do not cover"):
        next(generate_maps(Colours(), split, Groups([[0, 1], [2, 3]]), **OPTIONS))
    with pytest.raises(GwsssError, match="not among"):
        group_maps(Colours(), [Image.new("RGB", (9, 9))], [[5]], **OPTIONS)
