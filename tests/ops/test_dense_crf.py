"""The dense CRF on each backend against Kraehenbuhl's implementation (pydensecrf2) and exact pairwise mean field."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scipy import ndimage

from gwsss_fast import GwsssError, ops
from gwsss_fast.native import library
from gwsss_fast.reference.dense_crf import build_lattice, gaussian_filter

# sxy, w | sxy, srgb, w, iterations, as published with AffinityNet, IRN, DeepLab, MCIS and ToCo
PRESETS = {
    "psa": (3, 3, 80, 13, 10, 10),
    "irn": (3, 3, 50, 5, 10, 10),
    "deeplab": (1, 3, 67, 3, 4, 10),
    "mcis": (3, 1, 80, 4, 3, 1),
    "toco": (1, 1, 121, 5, 4, 10),
}
NAMES = ("sxy_gaussian", "w_gaussian", "sxy_bilateral", "srgb", "w_bilateral", "iterations")


@pytest.fixture(params=["reference", "cpp"])
def run(request):
    """run(prob, image, values): the operation on a backend."""
    if request.param == "cpp" and (reason := library.prepare()) is not None:
        pytest.skip(reason)

    def call(prob, image, values):
        with ops.backend(request.param):
            options = dict(zip(NAMES, values, strict=True))
            return ops.dense_crf(torch.as_tensor(prob), torch.as_tensor(image), **options)

    return call


def photograph(height, width, labels, seed):
    """Smooth coloured regions with fine noise, and smooth label probabilities that follow other borders."""
    rng = np.random.default_rng(seed)
    regions = ndimage.gaussian_filter(rng.standard_normal((6, height, width)), (0, 6, 6)).argmax(0)
    noise = ndimage.gaussian_filter(rng.standard_normal((height, width, 3)), (1, 1, 0)) * 40
    image = (rng.integers(0, 256, (6, 3))[regions] + noise).clip(0, 255).astype(np.uint8)
    logits = ndimage.gaussian_filter(rng.standard_normal((labels, height, width)), (0, 3, 3)) * 30
    odds = np.exp(logits - logits.max(0))
    return (odds / odds.sum(0)).astype(np.float32), image


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("height", "width", "labels"), [(60, 80, 3), (43, 57, 3), (41, 53, 21)])
def test_equals_the_published_implementation(run, preset, height, width, labels):
    densecrf = pytest.importorskip("pydensecrf.densecrf")
    from pydensecrf.utils import unary_from_softmax

    prob, image = photograph(height, width, labels, seed=height + labels)
    sxy_gaussian, w_gaussian, sxy_bilateral, srgb, w_bilateral, iterations = PRESETS[preset]
    crf = densecrf.DenseCRF2D(width, height, labels)
    crf.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(prob)))
    crf.addPairwiseGaussian(sxy=sxy_gaussian, compat=w_gaussian)
    crf.addPairwiseBilateral(sxy=sxy_bilateral, srgb=srgb, rgbim=image, compat=w_bilateral)
    expected = np.array(crf.inference(iterations)).reshape(labels, height, width)

    marginals = run(prob, image, PRESETS[preset]).numpy()
    assert np.abs(marginals - expected).max() <= 1e-3
    assert (marginals.argmax(0) == expected.argmax(0)).mean() >= 0.999
    assert (expected.argmax(0) != prob.argmax(0)).mean() > 0.02  # the comparison is not one of untouched unaries


def exact_mean_field(prob, image, values):
    """Every pair of pixels, float64 (a pixel also hears itself, as on the lattice)."""
    sxy_gaussian, w_gaussian, sxy_bilateral, srgb, w_bilateral, iterations = values
    labels, height, width = prob.shape
    y, x = np.mgrid[:height, :width].reshape(2, -1).astype(np.float64)
    colour = image.reshape(-1, 3).astype(np.float64) / srgb
    position = np.stack([x, y], 1)
    total = 0
    for weight, features in (
        (w_gaussian, position / sxy_gaussian),
        (w_bilateral, np.concatenate([position / sxy_bilateral, colour], 1)),
    ):
        kernel = np.exp(-0.5 * ((features[:, None] - features[None]) ** 2).sum(-1))
        root = np.sqrt(kernel.sum(1))
        total = total + weight * kernel / root[:, None] / root[None]
    log_unary = np.log(prob.reshape(labels, -1).astype(np.float64).clip(1e-5, 1))
    score = log_unary
    for _ in range(iterations + 1):
        odds = np.exp(score - score.max(0))
        marginals = odds / odds.sum(0)
        score = log_unary + marginals @ total
    return marginals.reshape(prob.shape)


def test_lattice_approximates_exact_pairwise_mean_field(run):
    prob, image = photograph(24, 30, 3, seed=5)
    values = (3, 3, 20, 20, 4, 5)
    exact = exact_mean_field(prob, image, values)
    approximate = run(prob, image, values).numpy()
    assert (approximate.argmax(0) == exact.argmax(0)).mean() > 0.95
    assert np.abs(approximate - exact).mean() < 0.05
    assert np.abs(prob - exact).mean() > 0.15


def test_lattice_weights_are_barycentric_and_the_filter_is_a_gaussian():
    rng = np.random.default_rng(0)
    features = rng.uniform(-6, 6, (400, 2))
    lattice = build_lattice(torch.tensor(features, dtype=torch.float32))
    assert torch.allclose(lattice.weights.sum(1), torch.ones(400), atol=1e-5)
    assert lattice.weights.min() > -1e-5
    values = rng.standard_normal((400, 2))
    exact = np.exp(-0.5 * ((features[:, None] - features[None]) ** 2).sum(-1)) @ values
    got = gaussian_filter(lattice, torch.tensor(values, dtype=torch.float32)).numpy()
    assert np.corrcoef(exact.ravel(), got.ravel())[0, 1] > 0.98


def test_no_iterations_or_no_weights_leave_the_normalised_unary(run):
    prob, image = photograph(10, 12, 3, seed=2)
    prob[:, 0, 0] = (1, 0, 0)  # clipped at 1e-5, so that the logarithm stays finite
    clipped = prob.clip(1e-5, 1)
    expected = clipped / clipped.sum(0)
    assert np.allclose(run(prob, image, (3, 3, 80, 13, 10, 0)), expected, atol=1e-6)
    assert np.allclose(run(prob, image, (3, 0, 80, 13, 0, 4)), expected, atol=1e-6)


def test_constant_image_and_certain_labels_are_a_fixed_point(run):
    prob = np.zeros((2, 9, 9), np.float32)
    prob[1] = 1
    marginals = run(prob, np.full((9, 9, 3), 7, np.uint8), PRESETS["irn"]).numpy()
    assert (marginals[1] > 1 - 1e-5).all()
    assert np.isfinite(marginals).all()


def test_dtype_layout_and_single_pixel(run):
    prob, image = photograph(8, 7, 3, seed=3)
    double = run(prob.astype(np.float64), image, PRESETS["psa"])
    assert double.dtype == torch.float64
    single = run(prob, image, PRESETS["psa"])
    assert torch.allclose(double.float(), single, atol=1e-6)
    strided = torch.as_tensor(prob.transpose(2, 1, 0).copy()).permute(2, 1, 0)
    assert torch.equal(run(strided, image, PRESETS["psa"]), single)
    assert run(prob[:, :1, :1], image[:1, :1], PRESETS["psa"]).shape == (3, 1, 1)


def test_gradient_in_the_probabilities(run):
    prob, image = photograph(6, 5, 2, seed=4)
    prob = torch.tensor(0.2 + 0.3 * prob, requires_grad=True)  # away from the clip at 1e-5 and 1
    direction = torch.randn(prob.shape, generator=torch.Generator().manual_seed(0))
    values = (3, 1, 20, 30, 1, 2)
    marginals = run(prob, image, values)
    marginals[0].sum().backward()
    step = 1e-3
    with torch.no_grad():
        ahead, behind = (run(prob + sign * step * direction, image, values)[0].double().sum() for sign in (1, -1))
    assert torch.isclose((prob.grad * direction).sum().double(), (ahead - behind) / (2 * step), rtol=0.05)


@pytest.mark.parametrize("image_shape", [(5, 4, 3), (4, 5, 4), (4, 5)])
def test_shapes_that_do_not_agree(run, image_shape):
    with pytest.raises(GwsssError, match="image must be uint8"):
        run(np.full((2, 4, 5), 0.5, np.float32), np.zeros(image_shape, np.uint8), PRESETS["psa"])


def test_too_fine_a_lattice_is_an_error_not_a_wrong_answer(run):
    with pytest.raises(GwsssError, match="sxy_bilateral or srgb is too small for this image; a lattice so fine"):
        run(
            np.full((2, 2, 2), 0.5, np.float32),
            np.arange(12).reshape(2, 2, 3).astype(np.uint8) * 20,
            (3, 3, 1e-4, 1e-4, 10, 1),
        )


def test_gradients_of_the_backends_agree():
    """Also where clipped probabilities have none, and after many updates."""
    if (reason := library.prepare()) is not None:
        pytest.skip(reason)
    prob, image = photograph(20, 23, 5, seed=6)
    prob[0, :3] = 0
    direction = torch.randn(prob.shape, generator=torch.Generator().manual_seed(1))
    gradients = []
    for name in ("reference", "cpp"):
        for values in (PRESETS["mcis"], (2, 1, 20, 30, 2, 6), (2, 0, 20, 30, 2, 3)):
            leaf = torch.tensor(prob, requires_grad=True)
            with ops.backend(name):
                marginals = ops.dense_crf(leaf, torch.as_tensor(image), **dict(zip(NAMES, values, strict=True)))
            (marginals * direction).sum().backward()
            gradients.append(leaf.grad)
    for reference, ours in zip(gradients[:3], gradients[3:], strict=True):
        assert (ours[0, :3] == 0).all()
        assert (ours - reference).abs().max() <= 2e-4 * reference.abs().max()
        assert reference.abs().max() > 0.1


def test_backends_agree_on_lattices_finer_than_the_image():
    """More points than pixels: the native library sums each point from its pixels, not from strips of the image."""
    if (reason := library.prepare()) is not None:
        pytest.skip(reason)
    prob, image = photograph(84, 110, 3, seed=10)
    direction = torch.randn(prob.shape, generator=torch.Generator().manual_seed(2))
    found = []
    for name in ("reference", "cpp"):
        leaf = torch.tensor(prob, requires_grad=True)
        with ops.backend(name):
            marginals = ops.dense_crf(
                leaf, torch.as_tensor(image), **dict(zip(NAMES, (1, 3, 30, 2, 4, 2), strict=True))
            )
        (marginals * direction).sum().backward()
        found.append((marginals.detach(), leaf.grad))
    (expected, slope), (ours, gradient) = found
    assert (ours - expected).abs().max() <= 1e-4
    assert (gradient - slope).abs().max() <= 2e-4 * slope.abs().max()


@pytest.mark.parametrize("labels", [3, 21, 40])
def test_the_result_does_not_hang_on_the_number_of_threads(labels):
    if (reason := library.prepare()) is not None:
        pytest.skip(reason)
    prob, image = photograph(97, 120, labels, seed=7)
    options = dict(zip(NAMES, (1, 3, 20, 3, 4, 3), strict=True))
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            leaf = torch.tensor(prob, requires_grad=True)
            with ops.backend("cpp"):
                marginals = ops.dense_crf(leaf, torch.as_tensor(image), **options)
            marginals[0].sum().backward()
            results.append((marginals.detach(), leaf.grad))
    finally:
        torch.set_num_threads(before)
    for marginals, gradient in results[1:]:
        assert torch.equal(marginals, results[0][0])
        assert torch.equal(gradient, results[0][1])


def test_threads_of_python_may_call_at_once():
    """Different images, each the result that it has alone."""
    if (reason := library.prepare()) is not None:
        pytest.skip(reason)
    options = dict(zip(NAMES, PRESETS["psa"], strict=True))
    cases = [photograph(40, 30 + size, 4, seed=size) for size in range(6)]

    def marginals(case):
        with torch.no_grad():
            return ops.dense_crf(torch.as_tensor(case[0]), torch.as_tensor(case[1]), **options)

    alone = [marginals(case) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        for ours, expected in zip(pool.map(marginals, cases * 4), alone * 4, strict=True):
            assert torch.equal(ours, expected)


def test_compiles_without_a_graph_break(run):
    prob, image = photograph(8, 7, 3, seed=9)
    expected = run(prob, image, PRESETS["mcis"])
    compiled = torch.compile(lambda p: run(p, image, PRESETS["mcis"]) * 2, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(torch.as_tensor(prob)), 2 * expected)


@pytest.mark.parametrize("kind", ["public", "backend"])
def test_registered_operator_passes_opcheck(kind):
    names = ["reference"] if library.prepare() is not None else ["reference", "cpp"]
    prob, image = photograph(8, 7, 3, seed=8)
    arguments = (torch.tensor(prob, requires_grad=kind == "public"), torch.as_tensor(image))
    for name in names:
        torch.library.opcheck(torch.ops.gwsss_fast.dense_crf, (*arguments, *map(float, PRESETS["mcis"][:5]), 1, name))
