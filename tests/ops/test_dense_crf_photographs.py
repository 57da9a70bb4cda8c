"""The native dense CRF and pydensecrf2 on photographs: every preset with 3, 21 and 81 labels.

Photographs come from the folder GWSSS_TEST_DATA (VOC layout), scaled down; without it they are generated.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gwsss_fast import ops
from gwsss_fast.labels.crf import PRESETS
from gwsss_fast.native import library
from tests.ops.test_dense_crf import NAMES, photograph

WIDTH, HEIGHT, COUNT = 147, 110, 10


def photographs() -> list[np.ndarray]:
    folder = Path(os.environ.get("GWSSS_TEST_DATA", "")) / "JPEGImages"
    paths = sorted(folder.glob("*.jpg"))[:: max(1, len(list(folder.glob("*.jpg"))) // COUNT)][:COUNT]
    if len(paths) < COUNT:
        return [photograph(HEIGHT, WIDTH, 2, seed=seed)[1] for seed in range(COUNT)]
    return [
        np.array(Image.open(path).convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)) for path in paths
    ]


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    if (reason := library.prepare()) is not None:
        pytest.skip(reason)
    return photographs()


# 81 labels take pydensecrf2 long: four photographs of the ten.
@pytest.mark.parametrize(("labels", "count"), [(3, 10), (21, 10), (81, 4)])
@pytest.mark.parametrize("preset", PRESETS)
def test_marginals_are_those_of_pydensecrf(preset: str, labels: int, count: int, images: list[np.ndarray]) -> None:
    densecrf = pytest.importorskip("pydensecrf.densecrf")
    from pydensecrf.utils import unary_from_softmax

    settings = PRESETS[preset]
    for number, image in enumerate(images[:count]):
        prob = photograph(HEIGHT, WIDTH, labels, seed=100 + number)[0]
        crf = densecrf.DenseCRF2D(WIDTH, HEIGHT, labels)
        crf.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(prob)))
        crf.addPairwiseGaussian(sxy=settings.sxy_gaussian, compat=settings.w_gaussian)
        crf.addPairwiseBilateral(
            sxy=settings.sxy_bilateral, srgb=settings.srgb, rgbim=image, compat=settings.w_bilateral
        )
        expected = np.array(crf.inference(settings.iterations)).reshape(prob.shape)
        with ops.backend("cpp"):
            options = {name: getattr(settings, name) for name in NAMES}
            marginals = ops.dense_crf(torch.as_tensor(prob), torch.as_tensor(image), **options).numpy()
        assert np.abs(marginals - expected).max() <= 1e-3
        assert (marginals.argmax(0) == expected.argmax(0)).mean() >= 0.999
        assert np.abs(expected - prob).max() > 0.05  # the comparison is not one of untouched probabilities
