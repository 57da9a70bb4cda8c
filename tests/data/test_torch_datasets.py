from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from voc_builder import add_mask

from gwsss_fast.data.records import Record, Split
from gwsss_fast.data.samplers import GroupSampler
from gwsss_fast.data.torch_datasets import GroupDataset, ImageCache, SegmentationDataset
from gwsss_fast.data.transforms import ClassifierTransform, SegmenterTransform, SquareTransform
from gwsss_fast.errors import GwsssError

TRANSFORM = ClassifierTransform(8, color_jitter=0.2)


@pytest.fixture
def split(tmp_path):
    rng = np.random.default_rng(0)
    records = []
    for number in range(12):
        path = tmp_path / f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (10, 12, 3), np.uint8)).save(path)
        records.append(Record(str(number), path, labels=(number % 3,)))
    return Split("train", ("a", "b", "c"), tuple(records))


def groups_of(split, seed=0, **options):
    return GroupDataset(split, GroupSampler(split.labels, 3, "greedy", seed), TRANSFORM, seed, **options)


def test_groups(split):
    dataset = groups_of(split)
    assert len(dataset) == 12
    dataset.set_epoch(2)
    expected = GroupSampler(split.labels, 3, "greedy", 0).epoch(2)
    for position in range(len(dataset)):
        item = dataset[position]
        assert (item["images"].dtype, item["images"].shape) == (torch.float32, (3, 3, 8, 8))
        assert (item["labels"].dtype, item["labels"].shape) == (torch.float32, (3, 3))
        np.testing.assert_array_equal(item["indices"], expected[position])
        np.testing.assert_array_equal(item["labels"], split.labels[expected[position]])


def test_images_of_a_group_are_those_of_its_indices(split):
    plain = GroupDataset(split, GroupSampler(split.labels, 3, "random"), SquareTransform(8))
    item = plain[5]
    for image, index in zip(item["images"], item["indices"].tolist(), strict=True):
        assert torch.equal(image, SquareTransform(8)(Image.open(split.records[index].image)))


def batches(dataset, epochs, start=0, **options):
    loader = DataLoader(dataset, batch_size=4, sampler=range(start, len(dataset)), **options)
    found = []
    for epoch in epochs:
        dataset.set_epoch(epoch)
        found += list(loader)
    return found


def same(first, second):
    return len(first) == len(second) and all(
        torch.equal(a[key], b[key]) for a, b in zip(first, second, strict=True) for key in a
    )


def test_batches_do_not_depend_on_workers_or_on_a_resume(split):
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    alone = batches(groups_of(split), [0, 1, 2])
    assert alone[0]["images"].shape == (4, 3, 3, 8, 8)
    torch.random.set_rng_state(before)
    torch.manual_seed(2)
    workers = batches(groups_of(split), [0, 1, 2], num_workers=2, persistent_workers=True)
    assert same(workers, alone)
    resumed = batches(groups_of(split), [2], start=4)
    assert same(resumed, alone[-2:])
    assert not same(batches(groups_of(split, seed=1), [0]), alone[:3])
    assert not same(alone[:3], alone[3:6])


def test_reading_leaves_the_global_generator_alone(split):
    state = torch.random.get_rng_state()
    groups_of(split)[0]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_cache_changes_nothing_and_keeps_to_its_size(split):
    expected = [groups_of(split)[position]["images"] for position in range(12)]
    image_bytes = 10 * 12 * 3
    cache = ImageCache(5.5 * image_bytes / 2**20)
    assert cache.preload(split.records) == 5
    dataset = groups_of(split, cache=cache)
    for record in split.records[:5]:
        record.image.unlink()  # what is in the cache is not read again
    for record in split.records[5:]:
        assert record.image.exists()
    assert all(torch.equal(dataset[position]["images"], expected[position]) for position in range(12))
    assert ImageCache(0).preload(split.records[5:]) == 0


def test_sampler_and_split_must_agree(split):
    sampler = GroupSampler(split.labels[:5], 2)
    with pytest.raises(GwsssError, match="made for 5 images, but train has 12"):
        GroupDataset(split, sampler, TRANSFORM)


@pytest.fixture
def masks(tmp_path, split):
    for number, record in enumerate(split.records):
        add_mask(tmp_path, record.id, np.full((10, 12), number % 4).tolist(), "pseudo")
    return tmp_path / "pseudo"


def test_segmentation_pairs(split, masks):
    from_folder = SegmentationDataset(split, SegmenterTransform(16), 0, masks)
    mapping = {record.id: masks / f"{record.id}.png" for record in split.records}
    from_mapping = SegmentationDataset(split, SegmenterTransform(16), 0, mapping)
    own = Split(
        "train", split.classes, tuple(Record(r.id, r.image, mapping[r.id], None, r.labels) for r in split.records)
    )
    from_split = SegmentationDataset(own, SegmenterTransform(16), 0)
    for position in range(12):
        item = from_folder[position]
        assert (item["image"].shape, item["mask"].shape) == ((3, 16, 16), (16, 16))
        assert item["mask"].dtype == torch.int64
        assert set(item["mask"].unique().tolist()) - {255} == {position % 4}
        assert item["index"] == position
        for other in (from_mapping, from_split):
            assert all(torch.equal(item[key], other[position][key]) for key in item)
    from_mapping.set_epoch(1)
    assert any(not torch.equal(from_folder[p]["image"], from_mapping[p]["image"]) for p in range(12))


def test_segmentation_does_not_depend_on_workers(split, masks):
    datasets = [SegmentationDataset(split, SegmenterTransform(16), 0, masks) for _ in range(2)]
    assert same(batches(datasets[0], [0, 1]), batches(datasets[1], [0, 1], num_workers=1, persistent_workers=True))


def test_lacking_masks_are_named(split, masks):
    (masks / "7.png").unlink()
    with pytest.raises(GwsssError, match=r"image 7 of the split train has no mask in .*pseudo \(1 without\)"):
        SegmentationDataset(split, SegmenterTransform(16), 0, masks)
    with pytest.raises(GwsssError, match=r"image 0 .* has no mask of its own \(12 without\)"):
        SegmentationDataset(split, SegmenterTransform(16))
    with pytest.raises(GwsssError, match=r"image 1 .* has no mask among those given"):
        SegmentationDataset(split, SegmenterTransform(16), 0, {"0": masks / "0.png"})


def test_errors_name_list_and_line(split, masks, tmp_path):
    records = tuple(replace(record, where=f"own.txt, line {record.id}") for record in split.records)
    listed = Split("train", split.classes, records)
    add_mask(tmp_path, "1", [[4]], "pseudo")
    add_mask(tmp_path, "2", [[0]], "pseudo")
    records[3].image.write_bytes(b"")
    segmentation = SegmentationDataset(listed, SegmenterTransform(16), 0, masks)
    groups = GroupDataset(listed, GroupSampler(split.labels, 12, "random"), TRANSFORM)
    for dataset, position, message in [
        (segmentation, 1, r"1: mask .*1\.png holds the value 4"),
        (segmentation, 2, r"2: mask .*2\.png has 1x1"),
        (segmentation, 3, r"3: image .*3\.png cannot be decoded"),
        (groups, 0, r"3: image .*3\.png cannot be decoded"),
    ]:
        with pytest.raises(GwsssError, match=rf"^own\.txt, line {message}"):
            dataset[position]


def test_masks_that_do_not_fit(split, masks, tmp_path):
    add_mask(tmp_path, "0", [[0, 1]], "pseudo")
    add_mask(tmp_path, "1", np.full((10, 12), 4).tolist(), "pseudo")
    dataset = SegmentationDataset(split, SegmenterTransform(16), 0, masks)
    with pytest.raises(GwsssError, match=r"mask .*pseudo/0\.png has 2x1 pixels, but its image .* has 12x10"):
        dataset[0]
    with pytest.raises(GwsssError, match=r"pseudo/1\.png holds the value 4"):
        dataset[1]
