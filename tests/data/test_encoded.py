"""Decoding on the device, here a CPU: draws, items and errors of the loader's way, and pixels up to grey levels."""

from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from gwsss_fast.config import check, read_config
from gwsss_fast.data import encoded, images
from gwsss_fast.data.encoded import DeviceImages, EncodedFiles, read_encoded
from gwsss_fast.data.images import read_image, set_pixel_limit
from gwsss_fast.data.records import Record, Split
from gwsss_fast.data.samplers import GroupSampler
from gwsss_fast.data.torch_datasets import GroupDataset, SegmentationDataset
from gwsss_fast.data.transforms import MEAN, STD, ClassifierTransform, SegmenterTransform, normalise, seeded
from gwsss_fast.errors import GwsssError
from gwsss_fast.training.batches import consecutive, epochs_of_batches

CPU = torch.device("cpu")
GREY = torch.tensor(STD)[:, None, None] * 255  # grey levels in network input
BAD = 4
DEVICES = [CPU, torch.device("cuda")] if torch.cuda.is_available() else [CPU]
# Mean and largest difference in grey levels; measured on a CPU: 0.2 and 4, of jittered colours. nvJPEG spreads the
# colours of coarser planes in its own way, which shows at edges.
APART = {"cpu": (0.5, 6), "cuda": (4, 255)}


def picture(number, size=(90, 70)):
    """Smooth shapes in colour, as photographs are; not noise, on which decoders differ the most."""
    rng = np.random.default_rng(number)
    image = Image.new("RGB", size, tuple(rng.integers(60, 200, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y, r = rng.integers(0, size[0]), rng.integers(0, size[1]), rng.integers(4, 30)
        draw.ellipse((x - r, y - r, x + r, y + r), tuple(rng.integers(0, 256, 3).tolist()))
    return image.resize((size[0] // 2, size[1] // 2)).resize(size, Image.Resampling.BICUBIC)


def damaged(content):
    """A JPEG file with a header and an end, and nothing that could be decoded between: its tables are overwritten."""
    content = bytearray(content)
    table = content.index(b"\xff\xc4")
    content[table + 5 : table + 21] = b"\xff" * 16
    return bytes(content)


@pytest.fixture
def split(tmp_path):
    """10 images with masks: JPEG files, one of them progressive, one grey, one for printers; a PNG file."""
    records = []
    for number in range(10):
        path = tmp_path / f"{number}.{'png' if number == 1 else 'jpg'}"
        image = picture(number).convert({2: "L", 3: "CMYK"}.get(number, "RGB"))
        image.save(path, **({} if number == 1 else {"quality": 90, "progressive": number == 5}))
        mask = tmp_path / f"mask_{number}.png"
        Image.fromarray(np.repeat(np.arange(70)[:, None] // 20, 90, 1).astype(np.uint8)).save(mask)
        records.append(Record(f"image{number}", path, mask, labels=(number % 3,), where=f"list, line {number}"))
    return Split("train", ("a", "b", "c"), tuple(records))


def groups(split, source, limit=None, jitter=0.2):
    sampler = GroupSampler(split.labels, 3, "random", 5)
    return GroupDataset(split, sampler, ClassifierTransform(48, color_jitter=jitter), 5, source, limit)


def pairs(split, source, limit=None, jitter=0.2):
    return SegmentationDataset(split, SegmenterTransform(65, color_jitter=jitter), 5, None, source, limit)


def batches(dataset, workers=0, finish=None, steps=6):
    order = consecutive(len(dataset), 4)
    iterator = epochs_of_batches(dataset, lambda epoch: order, 0, 3, workers, False, None, finish)
    return [next(iterator).items for _ in range(steps)]


def on_device(dataset, device=CPU, workers=0):
    return batches(dataset, workers, DeviceImages(dataset, device))


def difference(first, second):
    """Mean and largest difference in grey levels of two batches whose other entries must agree."""
    name = "images" if "images" in first else "image"
    assert first.keys() == second.keys()
    for key in first.keys() - {name}:
        assert torch.equal(first[key], second[key]), key
    assert first[name].shape == second[name].shape
    assert type(second[name]) is torch.Tensor
    apart = ((first[name].cpu() - second[name].cpu()) * GREY).abs()
    return float(apart.mean()), float(apart.max())


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("kind", [groups, pairs])
def test_batches_are_the_loaders_up_to_grey_levels(split, kind, device):
    loaded, made = batches(kind(split, None)), on_device(kind(split, EncodedFiles()), device)
    for first, second in zip(loaded, made, strict=True):
        mean, most = difference(first, second)
        assert mean < APART[device.type][0]
        assert most < APART[device.type][1]
        assert second["images" if kind is groups else "image"].device.type == device.type
    for first, second in zip(on_device(kind(split, EncodedFiles()), device, 1), made, strict=True):
        assert difference(first, second) == (0, 0)


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("kind", [groups, pairs])
def test_bad_images_are_the_same_and_so_is_what_takes_their_place(split, kind, device):
    path = split.records[BAD].image
    path.write_bytes(damaged(path.read_bytes()))
    assert isinstance(read_encoded(path).content, bytearray)  # found out when it is decoded
    split.records[7].image.write_bytes(split.records[7].image.read_bytes()[:-200])
    split.records[8].image.write_text("not found")
    with pytest.raises(GwsssError, match=r"^list, line \d: image .*(4|7|8)\.jpg cannot be decoded"):
        on_device(kind(split, EncodedFiles()), device)
    seen = set()
    for workers in (0, 1):
        loaded, made = batches(kind(split, None, 9)), on_device(kind(split, EncodedFiles(), 9), device, workers)
        for first, second in zip(loaded, made, strict=True):
            assert difference(first, second)[0] < APART[device.type][0]
            seen |= set(second["replaced"].flatten().tolist())
    assert seen == {-1, BAD, 7, 8}


def test_what_the_decoder_refuses_goes_the_loaders_way(split, monkeypatch):
    whole = encoded.decode_jpeg
    refused = (split.records[0].image.read_bytes(), split.records[6].image.read_bytes())

    def refusing(files, *options):
        if any(bytes(file.numpy()) in refused for file in files):
            raise RuntimeError("Failed to decode jpeg stream: 5")
        return whole(files, *options)

    monkeypatch.setattr(encoded, "decode_jpeg", refusing)
    exact = 0
    for first, second in zip(batches(groups(split, None)), on_device(groups(split, EncodedFiles())), strict=True):
        assert difference(first, second)[0] < APART["cpu"][0]
        for row, indices in enumerate(first["indices"].tolist()):
            if {0, 6} & set(indices):
                assert torch.equal(first["images"][row], second["images"][row])
                exact += 1
    assert exact > 3
    monkeypatch.setattr(encoded, "decode_jpeg", lambda *_: [torch.zeros(3, 9, 9, dtype=torch.uint8)])
    assert encoded.decode([read_encoded(split.records[0].image)], CPU) == [None]  # not the size that was drawn for

    def none(*_):
        raise RuntimeError("decode_jpegs_cuda: torchvision not compiled with nvJPEG support")

    monkeypatch.setattr(encoded, "decode_jpeg", none)
    with pytest.raises(GwsssError, match=r"cannot decode JPEG files on cpu \(decode_jpegs.* use --data.decode workers"):
        DeviceImages(groups(split, EncodedFiles()), CPU)


def test_only_whole_jpeg_files_in_ycbcr_stay_encoded(split, tmp_path):
    for number, record in enumerate(split.records):
        found = read_encoded(record.image)
        assert found.size == (90, 70)
        assert isinstance(found.content, bytearray) == (number not in (1, 2, 3))
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held upright
    picture(1).save(tmp_path / "turned.jpg", exif=turned)
    picture(1).save(tmp_path / "rgb.jpg", keep_rgb=True)
    found = read_encoded(tmp_path / "turned.jpg")
    pixels = encoded.decode([found], CPU)[0]
    assert pixels.shape[1:] == (70, 90)  # in the order of the file, as read_image has it
    rgb = read_encoded(tmp_path / "rgb.jpg")
    np.testing.assert_array_equal(rgb.content, read_image(tmp_path / "rgb.jpg"))
    with_tail = tmp_path / "tail.jpg"
    with_tail.write_bytes(split.records[0].image.read_bytes() + b"more")
    np.testing.assert_array_equal(read_encoded(with_tail).content, read_image(split.records[0].image))


def test_errors_are_those_of_the_loaders_way(split, tmp_path):
    bomb = BytesIO()
    Image.new("RGB", (300, 300)).save(bomb, "JPEG")
    (tmp_path / "bomb.jpg").write_bytes(bomb.getvalue())
    (tmp_path / "cut.jpg").write_bytes(split.records[0].image.read_bytes()[:-9])
    (tmp_path / "empty.jpg").write_bytes(b"")
    try:
        set_pixel_limit(0.05)
        for name in ("bomb.jpg", "cut.jpg", "empty.jpg", "none.jpg"):
            record = replace(split.records[0], image=tmp_path / name)
            with pytest.raises(GwsssError) as expected:
                read_image(record.image)
            with pytest.raises(GwsssError) as found:
                EncodedFiles().read(record)
            assert str(found.value) == f"list, line 0: {expected.value}"
    finally:
        set_pixel_limit(images.MAX_MEGAPIXELS)


def test_the_draws_are_those_of_torchvisions_compose():
    """Bit for bit, on PIL images."""
    jitter = v2.ColorJitter(0.3, 0.3, 0.3)
    crop = v2.Compose([v2.RandomResizedCrop(32, scale=(0.3, 1)), v2.RandomHorizontalFlip(), jitter])
    ours = ClassifierTransform(32, (0.3, 1), color_jitter=0.3)
    mean = [round(255 * value) for value in MEAN]
    cut = v2.RandomCrop(48, pad_if_needed=True, fill={tv_tensors.Image: mean, tv_tensors.Mask: 255})
    both = v2.Compose([cut, v2.RandomHorizontalFlip(), jitter])
    segmenter = SegmenterTransform(48, (1, 1), color_jitter=0.3)
    for seed in range(8):
        image = picture(seed, (40 + 5 * seed, 90 - 7 * seed))
        mask = np.arange(image.width * image.height, dtype=np.uint8).reshape(image.height, image.width)
        with seeded(seed):
            expected = normalise(crop(image))
        with seeded(seed):
            assert torch.equal(ours(image), expected)
        with seeded(seed):
            torch.rand(())  # the scale
            expected, target = both(functional.to_image(image), tv_tensors.Mask(torch.from_numpy(mask)))
        with seeded(seed):
            found = segmenter(image, mask)
        assert torch.equal(found[0], normalise(expected))
        assert torch.equal(found[1], target.as_subclass(torch.Tensor).long())


def test_a_cache_folder_has_nothing_to_keep():
    with pytest.raises(GwsssError, match=r"data\.decode device keeps no decoded images"):
        check(read_config("data: {decode: device, cache_dir: /tmp/x}", "test"))
