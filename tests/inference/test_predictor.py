"""`gwsss_fast.Predictor`: what it accepts, what it gives, and what it needs."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import gwsss_fast
from gwsss_fast import DeepLabV2, Predictor
from gwsss_fast.data.images import read_image
from gwsss_fast.data.transforms import normalise
from gwsss_fast.errors import GwsssError
from gwsss_fast.inference import predictor as predictor_module
from gwsss_fast.models.deeplab import predict_probabilities
from gwsss_fast.training.checkpoints import load_checkpoint
from tests.processes import python

CLASSES = ("a", "b", "c")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return DeepLabV2(4, "tiny", rates=(1, 2)).eval()


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (9, 13, 3), dtype=np.uint8))
    return np.asarray(small.resize((130, 90), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("options", [{}, {"scales": (0.5, 1.25), "flip": True}], ids=["plain", "scales and flip"])
def test_it_gives_what_the_network_says(model: nn.Module, photograph: np.ndarray, options: dict) -> None:
    (found,) = Predictor(model, classes=CLASSES, precision="fp32", **options)([photograph], probabilities=True)
    wanted = predict_probabilities(model, normalise(photograph), *options.values()).numpy()
    np.testing.assert_allclose(found.probabilities, wanted, atol=1e-5)
    assert found.mask.dtype == np.uint8
    assert (found.mask == found.probabilities.argmax(0)).all()
    assert [item.label for item in found.objects] == [x for x in np.unique(found.mask) if x]
    for item in found.objects:
        assert item.score == pytest.approx(wanted[item.label][found.mask == item.label].mean(), abs=1e-4)


def test_any_kind_of_image_and_any_order(model: nn.Module, photograph: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(photograph).save(path)
    images = [photograph, Image.fromarray(photograph[:50]), path, str(path), photograph[:50], photograph[:, ::-1]]
    one = Predictor(model, classes=CLASSES, precision="fp32")
    several = Predictor(model, classes=CLASSES, precision="fp32", batch=3)
    found = several(images)
    for each, image in zip(found, images, strict=True):
        assert each.classes == CLASSES
        assert each.probabilities is None
        alone = one([image])[0]
        assert (each.mask == alone.mask).mean() > 0.999  # sums in a batch may be rounded otherwise
    assert (found[0].mask == found[2].mask).all()
    assert several([]) == []


def test_images_of_one_size_share_a_pass(photograph: np.ndarray) -> None:
    seen = []

    class Spy(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(tuple(images.shape))
            return images[:, :2]

    predict = Predictor(Spy(), classes=["x"], precision="fp32", batch=2)
    seen.clear()
    predict([photograph, photograph[:60], photograph, photograph])
    assert seen == [(2, 3, 90, 130), (1, 3, 90, 130), (1, 3, 60, 130)]


def test_windows_change_nothing_where_the_network_sees_little(photograph: np.ndarray) -> None:
    torch.manual_seed(0)
    local = nn.Conv2d(3, 4, 5, padding=2)
    large = np.tile(photograph, (2, 2, 1))
    (whole,) = Predictor(local, classes=CLASSES, precision="fp32", tile=0)([large], probabilities=True)
    (tiled,) = Predictor(local, classes=CLASSES, precision="fp32", tile=96)([large], probabilities=True)
    np.testing.assert_allclose(tiled.probabilities, whole.probabilities, atol=1e-5)
    assert (tiled.mask == tiled.probabilities.argmax(0)).all()
    assert sum(item.area for item in tiled.objects) == (tiled.mask > 0).sum()
    for one, other in zip(tiled.objects, whole.objects, strict=True):
        assert one.score == pytest.approx(other.score, abs=2e-4)


def test_large_images_are_seen_through_windows_by_themselves(
    model: nn.Module, photograph: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictor_module, "WHOLE_PIXELS", 90 * 130)
    monkeypatch.setattr(predictor_module, "TILE", 64)
    predict = Predictor(model, classes=CLASSES, precision="fp32")
    assert predict._window(photograph) is None
    assert predict._window(np.tile(photograph, (1, 2, 1))) == (64, 64)
    assert Predictor(model, classes=CLASSES, scales=(1, 1.5))._window(photograph) == (64, 64)
    assert Predictor(model, classes=CLASSES, tile=0)._window(np.tile(photograph, (9, 9, 1))) is None


def test_a_crf_refines_whole_images_and_windows(model: nn.Module, photograph: np.ndarray) -> None:
    for tile in (0, 80):
        plain, refined = (
            Predictor(model, classes=CLASSES, precision="fp32", crf=crf, tile=tile)([photograph, photograph[:70]])
            for crf in (None, "deeplab")
        )
        for before, after in zip(plain, refined, strict=True):
            assert 0 < (before.mask != after.mask).mean() < 0.5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scales": ()}, "scales"),
        ({"scales": (0.0,)}, "scales"),
        ({"tile": 5}, "tile 5"),
        ({"batch": 0}, "batch 0"),
        ({"crf": "no"}, "unknown CRF preset"),
        ({"precision": "int4"}, "unknown precision"),
        ({"precision": "fp16", "device": "cpu"}, "fp16 needs a GPU"),
        ({"classes": None}, "pass classes"),
        ({"classes": ()}, "0 classes"),
        ({"classes": [str(number) for number in range(255)]}, "255 classes"),
    ],
)
def test_bad_options_are_named(model: nn.Module, options: dict, words: str) -> None:
    with pytest.raises(GwsssError, match=words):
        Predictor(model, **{"classes": CLASSES, **options})


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((4, 4)), "float64"),
        (np.zeros((4, 4), np.uint8), r"\(4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (5, "int"),
        ("nothing.jpg", "does not exist"),
    ],
)
def test_what_is_no_image_is_named(model: nn.Module, image: object, words: str) -> None:
    with pytest.raises(GwsssError, match=words):
        Predictor(model, classes=CLASSES)([image])  # type: ignore[list-item]


def test_one_image_by_itself_is_named(model: nn.Module, photograph: np.ndarray) -> None:
    for image in (photograph, Image.fromarray(photograph), "image.jpg"):
        with pytest.raises(GwsssError, match=r"predictor\(\[image\]\)"):
            Predictor(model, classes=CLASSES)(image)  # type: ignore[arg-type]


def test_a_checkpoint_brings_its_classes_and_its_protocol(finished: tuple[Path, Path]) -> None:
    data, run = finished
    path = run / "segmenter/last.pt"
    predict = gwsss_fast.Predictor(path)
    assert predict.classes == tuple(load_checkpoint(path)["classes"])
    assert predict.scales == (1.0,)
    assert predict.precision in ("bf16", "fp32")
    image = read_image(sorted((data / "JPEGImages").iterdir())[0])
    assert predict([image])[0].mask.shape == image.size[::-1]


LARGE = """
import resource, torch, numpy as np
from gwsss_fast import Predictor
torch.set_num_threads(1)
predict = Predictor(torch.nn.Conv2d(3, 3, 8, stride=8), classes="ab")
predict([np.zeros((1400, 1600, 3), np.uint8)])
image = np.zeros((4000, 6000, 3), np.uint8)
image[::3, ::5] = 200
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
(found,) = predict([image])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, found.mask.shape)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has another unit elsewhere")
def test_memory_for_24_megapixels_is_bounded() -> None:
    """Probabilities of the whole image alone would need 275 MiB; what may grow are the mask and one strip."""
    done = python(LARGE)
    assert done.returncode == 0, done.stderr
    grown, shape = done.stdout.split(maxsplit=1)
    assert shape.strip() == "(4000, 6000)"
    assert float(grown) < 120
