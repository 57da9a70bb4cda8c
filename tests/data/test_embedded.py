"""The embedded data set: layout, determinism, what is in the pictures, and that a failed build leaves nothing."""

import hashlib
import json
import threading

import numpy as np
import pytest
from PIL import Image

from gwsss_fast.data import embedded
from gwsss_fast.data.embedded import CLASSES, build_embedded, cache_folder
from gwsss_fast.data.embedded.painting import mask_of, render
from gwsss_fast.data.embedded.planning import plan_classes, plan_split
from gwsss_fast.data.embedded.scenes import draw_parts, layers
from gwsss_fast.data.embedded.shapes import BODY, COMPANIONS, TELLING, THINGS, TRIM
from gwsss_fast.errors import GwsssError

TRAIN, VAL = 40, 16
TINY = {"train": 3, "val": 2, "size": 64}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return build_embedded(tmp_path_factory.mktemp("cache"), train=TRAIN, val=VAL)


@pytest.fixture(scope="module")
def train_scenes():
    return plan_split("train", 400, 0, 128)


def read_list(root, name):
    return (root / "ImageSets" / "Segmentation" / f"{name}.txt").read_text().splitlines()


def digest(root):
    sums = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        sums.update(path.relative_to(root).as_posix().encode())
        sums.update(np.asarray(Image.open(path)).tobytes() if path.suffix in (".png", ".jpg") else path.read_bytes())
    return sums.hexdigest()


def test_layout_and_lists(root):
    classes = (root / "classes.txt").read_text().splitlines()
    assert classes == ["background", *CLASSES]
    assert len(CLASSES) >= 6
    assert len(set(CLASSES)) == len(CLASSES)
    train, val = read_list(root, "train_aug"), read_list(root, "val")
    assert (len(train), len(val)) == (TRAIN, VAL)
    assert set(read_list(root, "train")) <= set(train)
    assert not set(train) & set(val)
    for name in train + val:
        with Image.open(root / "JPEGImages" / f"{name}.jpg") as image:
            assert image.mode == "RGB"
            size = image.size
        assert min(size) >= 100
        assert max(size) <= 150
        mask = Image.open(root / "SegmentationClass" / f"{name}.png")
        again = Image.open(root / "SegmentationClassAug" / f"{name}.png")
        saliency = Image.open(root / "Saliency" / f"{name}.png")
        assert (mask.mode, again.mode, saliency.mode) == ("P", "P", "L")
        assert mask.size == saliency.size == size
        assert np.array_equal(np.asarray(mask), np.asarray(again))
        # the published VOC colours: aeroplane, bicycle, ..., void
        assert mask.getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]
        assert mask.getpalette()[3 * 255 :] == [224, 224, 192]


def test_labels_agree_in_every_source(root):
    labels = np.load(root / "cls_labels.npy", allow_pickle=True).item()
    assert len(labels) == TRAIN + VAL
    counts = np.zeros(len(CLASSES), int)
    for split in ("train", "val"):
        for row in read_list(root, f"{split}_cls"):
            name, *numbers = row.split()
            vector = labels[name]
            assert vector.dtype == np.float32
            assert vector.shape == (len(CLASSES),)
            assert np.flatnonzero(vector).tolist() == [int(n) for n in numbers]
            mask = np.asarray(Image.open(root / "SegmentationClass" / f"{name}.png"))
            assert sorted(set(np.unique(mask)) - {0, 255}) == [int(n) + 1 for n in numbers]
            counts += vector.astype(int)
    assert counts.min() >= (TRAIN + VAL) // len(CLASSES)


def test_border_of_255_separates_all_regions(root):
    for name in read_list(root, "val"):
        mask = np.asarray(Image.open(root / "SegmentationClass" / f"{name}.png")).astype(int)
        assert 0.01 < (mask == 255).mean() < 0.25
        for a, b in ((mask[1:], mask[:-1]), (mask[:, 1:], mask[:, :-1])):
            assert not ((a != b) & (a != 255) & (b != 255)).any()
        # about 2 pixels wide: hardly any border pixel is surrounded by border, and none stands alone in row or column
        border = np.pad(mask == 255, 1)
        around = [border[dy : dy + mask.shape[0], dx : dx + mask.shape[1]] for dy in range(3) for dx in range(3)]
        assert (np.logical_and.reduce(around).sum() / border.sum()) < 0.15
        alone = around[4] & ~((around[1] | around[7]) & (around[3] | around[5]))
        assert not alone.any()


def test_same_seed_same_bytes_and_other_seed_others(tmp_path):
    first = build_embedded(tmp_path / "a", seed=3, **TINY)
    second = build_embedded(tmp_path / "b", seed=3, **TINY)
    other = build_embedded(tmp_path / "a", seed=4, **TINY)
    assert first.name == second.name
    assert digest(first) == digest(second)
    assert first != other
    assert digest(first) != digest(other)


def test_train_and_val_share_no_thing_and_no_background(train_scenes):
    val = plan_split("val", 120, 0, 128)
    things = [
        {(i.class_index, i.jitter, i.body) for s in scenes for i in s.instances} for scenes in (train_scenes, val)
    ]
    assert len(things[0]) == sum(len(s.instances) for s in train_scenes)
    assert not things[0] & things[1]
    assert not {s.background for s in train_scenes} & {s.background for s in val}


def test_companions_meet_three_times_as_often_as_chance():
    images = plan_classes(np.random.default_rng(0), 2000)
    several = [set(classes) for classes in images if len(set(classes)) > 1]
    pairs = {frozenset((a, b)): 0 for a in range(len(CLASSES)) for b in range(a)}
    for classes in several:
        for pair in pairs:
            pairs[pair] += pair <= classes
    chance = sum(pairs.values()) / len(pairs)
    for pair in COMPANIONS:
        assert 2.5 < pairs[frozenset(pair)] / chance < 4.5
    numbers = np.bincount([len(classes) for classes in images])
    assert numbers[1] > numbers[3] > 0
    assert numbers[2] > numbers[3]
    assert all(count > 0 for count in pairs.values())


def test_telling_part_is_a_small_share_of_every_thing(train_scenes):
    shares = {c: [] for c in range(len(THINGS))}
    hidden, in_sight = 0, []
    for scene in train_scenes[:160]:
        seen = layers(scene)
        for number, instance in enumerate(scene.instances, 1):
            alone = draw_parts(instance, seen.owner.shape)
            assert set(np.unique(alone)) - {0} == {BODY, 2, TRIM, TELLING}
            shares[instance.class_index].append((alone == TELLING).sum() / (alone > 0).sum())
            hidden += instance.cover is not None
            if instance.cover is not None:
                visible = ((seen.owner == number) & (seen.parts == TELLING)).sum()
                in_sight.append(visible / max(1, (alone == TELLING).sum()))
    for values in shares.values():
        assert 0.14 < np.mean(values) < 0.30
    assert 0.08 < hidden / sum(map(len, shares.values())) < 0.22
    assert np.median(in_sight) < 0.15


def test_area_of_things(train_scenes):
    areas = [layers(s).owner for s in train_scenes[:160]]
    shares = [(owner == n).mean() for owner in areas for n in range(1, owner.max() + 1)]
    assert np.mean(shares) == pytest.approx(0.2, abs=0.05)
    assert np.quantile(shares, 0.03) > 0.05
    assert max(shares) < 0.5


def test_telling_part_is_saturated_and_the_rest_is_muted(train_scenes):
    telling, rest = [], []
    for scene in train_scenes[:40]:
        saturation = np.asarray(Image.fromarray(render(scene)[0]).convert("HSV"))[..., 1] / 255
        parts = layers(scene).parts
        telling.append(np.median(saturation[parts == TELLING]) if (parts == TELLING).sum() > 50 else 1.0)
        rest.append(np.median(saturation[parts != TELLING]))
    assert np.mean(telling) > 0.7
    assert np.mean(rest) < 0.4


def test_things_in_front_hide_those_behind(train_scenes):
    scene = next(s for s in train_scenes if len(s.instances) == 3)
    front = scene.instances[-1]
    owner = layers(scene).owner
    alone = draw_parts(front, owner.shape) > 0
    covered = layers(scene).cover > 0
    assert (owner[alone & ~covered] == len(scene.instances)).all()
    mask = mask_of(scene)
    inside = alone & ~covered & (mask != 255)
    assert (mask[inside] == front.class_index + 1).mean() > 0.98


def test_saliency_is_soft_informative_and_imperfect(train_scenes):
    inside, outside, missed = [], [], 0
    for scene in train_scenes[:60]:
        _, mask, saliency = render(scene)
        assert np.count_nonzero(np.bincount(saliency.ravel(), minlength=256)) > 40
        inside.append(saliency[(mask > 0) & (mask != 255)].mean() / 255)
        outside.append(saliency[mask == 0].mean() / 255)
        missed += inside[-1] < 0.5
    assert 0.5 < np.mean(inside) < 0.97
    assert np.mean(outside) < 0.15
    assert missed > 0


def test_second_call_uses_the_cache(tmp_path, monkeypatch):
    root = build_embedded(tmp_path, **TINY)
    monkeypatch.setattr(embedded, "render", lambda scene: pytest.fail("drawn again"))
    assert build_embedded(tmp_path, **TINY) == root
    assert json.loads((root / "embedded.json").read_text())["train"] == 3


def test_failing_build_leaves_nothing(tmp_path, monkeypatch):
    calls = []

    def full_disk(scene):
        calls.append(scene)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return render(scene)

    monkeypatch.setattr(embedded, "render", full_disk)
    with pytest.raises(GwsssError, match=r"No space left on device.*GWSSS_CACHE"):
        build_embedded(tmp_path, **TINY)
    assert len(calls) == 3
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(embedded, "render", lambda scene: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        build_embedded(tmp_path, **TINY)
    assert list(tmp_path.iterdir()) == []


def test_builders_side_by_side_do_no_harm(tmp_path):
    roots = []
    barrier = threading.Barrier(2)

    def work():
        barrier.wait()
        roots.append(build_embedded(tmp_path, **TINY))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert roots[0] == roots[1]
    assert [p.name for p in tmp_path.iterdir()] == [roots[0].name]
    assert len(list((roots[0] / "JPEGImages").iterdir())) == 5


def test_losing_the_race_is_fine(tmp_path, monkeypatch):
    """Another builder finishes between our check and our renaming."""
    finished = build_embedded(tmp_path / "other", **TINY)
    publish = embedded._publish

    def late(content, root):
        finished.rename(root)
        publish(content, root)

    monkeypatch.setattr(embedded, "_publish", late)
    root = build_embedded(tmp_path / "ours", **TINY)
    assert (root / "embedded.json").is_file()
    assert [p.name for p in (tmp_path / "ours").iterdir()] == [root.name]


def test_bad_parameters_and_folders(tmp_path):
    for wrong in ({"seed": -1}, {"train": 0}, {"val": 0}, {"size": 10}):
        with pytest.raises(GwsssError, match="use seed"):
            build_embedded(tmp_path, **wrong)
    (tmp_path / "embedded-v2-seed0-train3-val2-size64").mkdir()
    with pytest.raises(GwsssError, match="delete the folder"):
        build_embedded(tmp_path, **TINY)
    (tmp_path / "file").touch()
    with pytest.raises(GwsssError, match="cannot write"):
        build_embedded(tmp_path / "file", **TINY)


def test_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("GWSSS_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("GWSSS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "gwsss_fast"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "gwsss_fast"
