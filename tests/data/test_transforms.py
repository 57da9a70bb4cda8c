import numpy as np
import pytest
import torch
from PIL import Image

from gwsss_fast.data.transforms import (
    MEAN,
    STD,
    ClassifierTransform,
    SegmenterTransform,
    SquareTransform,
    normalise,
    seeded,
)
from gwsss_fast.errors import GwsssError


def noise(width, height):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def test_normalise_by_hand():
    pixels = noise(5, 4)
    expected = (pixels.astype(np.float64) / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    for image in (pixels, Image.fromarray(pixels), torch.from_numpy(pixels).permute(2, 0, 1)):
        tensor = normalise(image)
        assert type(tensor) is torch.Tensor
        assert (tensor.dtype, tensor.shape) == (torch.float32, (3, 4, 5))
        np.testing.assert_allclose(tensor.numpy(), expected.transpose(2, 0, 1), atol=1e-5)
    assert MEAN == (0.485, 0.456, 0.406)
    assert STD == (0.229, 0.224, 0.225)


def test_seeded_repeats_and_leaves_the_generator_alone():
    before = torch.random.get_rng_state()
    drawn = []
    for key in ((1, 2), (1, 2), (1, 3), (2, 2)):
        with seeded(*key):
            drawn.append(torch.rand(()).item())
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3
    with pytest.raises(ZeroDivisionError), seeded(1):
        torch.rand(3) / (1 // 0)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("mode", ["crop", "squash"])
@pytest.mark.parametrize("size", [(50, 30), (7, 90)])
def test_classifier_transform_shapes(mode, size):
    tensor = ClassifierTransform(16, mode=mode, color_jitter=0.3)(Image.fromarray(noise(*size)))
    assert type(tensor) is torch.Tensor
    assert (tensor.dtype, tensor.shape) == (torch.float32, (3, 16, 16))
    assert tensor.isfinite().all()


def test_crops_keep_the_area_asked_for():
    """Over a ramp in x and one in y the spread of the crop tells how much of the image it holds."""
    ramp = np.zeros((200, 200, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(200)[None], np.arange(200)[:, None]
    transform = ClassifierTransform(100, scale=(0.5, 0.6), flip=False)
    for seed in range(10):
        with seeded(seed):
            red, green, _ = transform(Image.fromarray(ramp)) * torch.tensor(STD)[:, None, None] * 255 / 200
        area = (red.max() - red.min()) * (green.max() - green.min())
        assert 0.46 < area < 0.62


def test_squash_keeps_everything_and_flips_half_the_time():
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :20] = 255
    transform = ClassifierTransform(8, mode="squash")
    left = 0
    for seed in range(200):
        with seeded(seed):
            tensor = transform(Image.fromarray(pixels))
        halves = tensor[:, :, :3].mean(), tensor[:, :, 5:].mean()
        assert abs(halves[0] - halves[1]) > 3
        left += int(halves[0] > halves[1])
    assert 70 < left < 130


def test_square_transform_is_not_random():
    image = Image.fromarray(noise(50, 30))
    first, second = SquareTransform(16)(image), SquareTransform(16)(image)
    assert first.shape == (3, 16, 16)
    assert torch.equal(first, second)


def test_segmenter_transform_keeps_image_and_mask_together():
    """The mask says where the image is bright, at every scale, flipped or not."""
    mask = np.zeros((60, 80), np.uint8)
    mask[20:45, 10:50] = 3
    image = Image.fromarray((mask[..., None] > 0).repeat(3, axis=2).astype(np.uint8) * 255)
    transform = SegmenterTransform(64, scales=(0.5, 1.5))
    for seed in range(30):
        with seeded(seed):
            pixels, target = transform(image, mask)
        assert (pixels.shape, target.shape) == ((3, 64, 64), (64, 64))
        assert (pixels.dtype, target.dtype) == (torch.float32, torch.int64)
        assert type(pixels) is type(target) is torch.Tensor
        assert set(target.unique().tolist()) <= {0, 3, 255}
        bright = pixels[0] > pixels[0].new_tensor((0.5 - 0.485) / 0.229)
        inside = target != 255
        assert (bright[inside] == (target == 3)[inside]).float().mean() > 0.985  # all but the blurred rim
        assert pixels[:, ~inside].abs().max() < 0.02 if (~inside).any() else True


def test_small_images_lie_whole_in_the_padding():
    mask = np.ones((10, 12), np.uint8)
    places = set()
    for seed in range(20):
        with seeded(seed):
            _, target = SegmenterTransform(32, scales=(1, 1))(Image.fromarray(noise(12, 10)), mask)
        assert (target == 1).sum() == 120
        assert (target == 255).sum() == 32 * 32 - 120
        places.add(int((target == 1).flatten().int().argmax()))
    assert len(places) > 10


def test_without_scaling_and_padding_nothing_is_changed():
    pixels, mask = noise(32, 32), noise(32, 32)[..., 0]
    tensor, target = SegmenterTransform(32, scales=(1, 1), flip=False)(Image.fromarray(pixels), mask)
    assert torch.equal(tensor, normalise(pixels))
    np.testing.assert_array_equal(target, mask)


def test_jitter_changes_colours_and_no_label():
    pixels, mask = noise(32, 32), noise(32, 32)[..., 0]
    transform = SegmenterTransform(32, scales=(1, 1), flip=False, color_jitter=0.5)
    with seeded(1):
        first, target = transform(Image.fromarray(pixels), mask)
    with seeded(2):
        second, _ = transform(Image.fromarray(pixels), mask)
    np.testing.assert_array_equal(target, mask)
    assert not torch.equal(first, normalise(pixels))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClassifierTransform(0), "size of network input must be positive"),
        (lambda: ClassifierTransform(scale=(0.0, 1)), "scale must be 0 < low"),
        (lambda: ClassifierTransform(scale=(0.8, 0.5)), "scale must be 0 < low"),
        (lambda: ClassifierTransform(mode="stretch"), "unknown mode 'stretch'"),  # type: ignore[arg-type]
        (lambda: SegmenterTransform(scales=(1.5, 0.5)), "scales must be 0 < low"),
        (lambda: SquareTransform(-1), "must be positive"),
        (
            lambda: SegmenterTransform(8)(Image.new("RGB", (4, 5)), np.zeros((4, 5), np.uint8)),
            "mask of 5x4 does not fit its image of 4x5",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(GwsssError, match=message):
        make()
