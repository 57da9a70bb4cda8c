"""Confusion and scores against scikit-learn and by hand; the one-pass sweep against the loop over thresholds."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score

from gwsss_fast import evaluation
from gwsss_fast.errors import GwsssError
from gwsss_fast.evaluation import ThresholdSweep, coverage, segmentation_scores


def masks(rng, classes, share_unknown=0.1, shape=(23, 31)):
    drawn = rng.integers(0, classes, shape).astype(np.uint8)
    drawn[rng.random(shape) < share_unknown] = 255
    return drawn


@pytest.mark.parametrize("classes", [2, 7, 21])
def test_confusion_equals_scikit_learn(classes):
    rng = np.random.default_rng(classes)
    target, prediction = masks(rng, classes), masks(rng, classes)
    labels = list(range(classes))
    known = target != 255
    as_background = np.where(prediction == 255, 0, prediction)
    expected = confusion_matrix(target[known], as_background[known], labels=labels)
    got = evaluation.confusion_matrix(prediction, target, classes)
    assert got.dtype == np.int64
    assert np.array_equal(got, expected)
    known &= prediction != 255
    expected = confusion_matrix(target[known], prediction[known], labels=labels)
    got = evaluation.confusion_matrix(prediction, target, classes, ignored_prediction="ignore")
    assert np.array_equal(got, expected)


def test_scores_equal_scikit_learn():
    rng = np.random.default_rng(1)
    target, prediction = masks(rng, 6, 0), masks(rng, 6, 0)
    scores = segmentation_scores(evaluation.confusion_matrix(prediction, target, 6))
    assert scores.iou == pytest.approx(jaccard_score(target.ravel(), prediction.ravel(), average=None))
    assert scores.miou == pytest.approx(jaccard_score(target.ravel(), prediction.ravel(), average="macro"))
    assert scores.accuracy == pytest.approx(accuracy_score(target.ravel(), prediction.ravel()))
    assert scores["miou"] == scores.miou == scores[0]


def test_scores_by_hand_with_an_absent_class():
    #           background: 6 right, 1 taken for class 1; class 1: 2 right, 3 missed; class 2 nowhere; class 3 invented
    scores = segmentation_scores([[6, 1, 0, 1], [3, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert scores.iou[:2] == pytest.approx([6 / 11, 2 / 6])
    assert np.isnan(scores.iou[2])
    assert scores.iou[3] == 0
    assert scores.miou == pytest.approx((6 / 11 + 2 / 6 + 0) / 3)
    assert scores.accuracy == pytest.approx(8 / 13)
    assert scores.fp == pytest.approx((3 / 11 + 1 / 6 + 1) / 3)
    assert scores.fn == pytest.approx((2 / 11 + 3 / 6 + 0) / 3)
    assert scores.miou + scores.fp + scores.fn == pytest.approx(1)


def test_scores_of_nothing_are_nan():
    assert np.isnan(segmentation_scores(np.zeros((3, 3))).miou)


def test_the_policy_for_unlabelled_predictions():
    prediction, target = np.array([[0, 255], [1, 255]]), np.array([[0, 1], [1, 255]])
    assert evaluation.confusion_matrix(prediction, target, 2).tolist() == [[1, 0], [1, 1]]
    ignored = evaluation.confusion_matrix(prediction, target, 2, ignored_prediction="ignore")
    assert ignored.tolist() == [[1, 0], [0, 1]]
    assert coverage(prediction) == 0.5


def test_confusion_takes_tensors():
    counts = evaluation.confusion_matrix(torch.tensor([[0, 1]]), torch.tensor([[1, 1]], dtype=torch.uint8), 2)
    assert counts.tolist() == [[0, 0], [1, 1]]


def naive_sweep(images, classes, thresholds):
    """The definition: for every threshold argmax of the threshold's map and the class maps, then the confusion."""
    matrices = []
    for threshold in thresholds:
        total = np.zeros((classes, classes), np.int64)
        for cams, keys, target in images:
            with_background = np.concatenate([np.full((1, *target.shape), threshold, cams.dtype), cams])
            prediction = np.concatenate([[0], np.asarray(keys, int) + 1])[np.argmax(with_background, 0)]
            known = target != 255
            total += confusion_matrix(target[known], prediction[known], labels=list(range(classes)))
        matrices.append(total)
    return np.array(matrices)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sweep_equals_the_naive_loop_exactly(dtype):
    classes, thresholds = 6, np.arange(0, 0.6, 0.01)
    rng = np.random.default_rng(0)
    images = []
    for keys in ([0], [1, 3], [0, 2, 4], []):
        target = masks(rng, classes)
        cams = rng.random((len(keys), *target.shape))
        cams[:, :8] = thresholds.astype(dtype)[rng.integers(0, 60, cams[:, :8].shape)]  # equal to thresholds
        cams[1:, 8:12] = cams[:1, 8:12]  # ties between classes
        cams[:, 12:14] = 0
        images.append((cams.astype(dtype), keys, target))
    sweep = ThresholdSweep(classes)
    for cams, keys, target in images:
        sweep.update(cams, keys, target)
    expected = naive_sweep(images, classes, thresholds)
    assert np.array_equal(sweep.confusion_matrices(), expected)
    result = sweep.scores()
    curve = np.array([segmentation_scores(matrix).miou for matrix in expected])
    assert np.array_equal(result.curve, curve)
    assert result.best_miou == curve.max()
    assert result.best_threshold == thresholds[curve.argmax()]
    assert np.array_equal(result.confusion, expected[curve.argmax()])


def test_sweep_by_hand():
    sweep = ThresholdSweep(3, [0.25, 0.5])
    cams = np.array([[[0.25, 0.5, 0.75, 0.6]], [[0.1, 0.5, 0.8, 0.9]]], np.float16)
    sweep.update(cams, [0, 1], np.array([[0, 1, 2, 255]]))
    # t = 0.25: background (tie), class 1 (tie of classes), class 2; t = 0.5: background, background (tie), class 2
    assert sweep.confusion_matrices().tolist() == [
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[1, 0, 0], [1, 0, 0], [0, 0, 1]],
    ]
    result = sweep.scores()
    assert result.best_threshold == 0.25
    assert result.curve == pytest.approx([1, (1 / 2 + 0 + 1) / 3])


def test_sweep_without_keys_takes_all_classes():
    sweep = ThresholdSweep(3, [0.5])
    sweep.update(np.array([[[0.1]], [[0.9]]]), None, np.array([[2]]))
    assert sweep.scores().confusion[2, 2] == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: evaluation.confusion_matrix([[3]], [[0]], 3), "prediction holds the value 3"),
        (lambda: evaluation.confusion_matrix([[0]], [[9]], 3), "ground truth holds the value 9"),
        (lambda: evaluation.confusion_matrix([[0, 0]], [[0]], 3), "shape"),
        (lambda: evaluation.confusion_matrix([[0]], [[0]], 3, ignored_prediction="drop"), "background, ignore"),
        (lambda: segmentation_scores(np.zeros((2, 3))), "square"),
        (lambda: ThresholdSweep(3, [0.2, 0.1]), "increasing"),
        (lambda: ThresholdSweep(3).scores(), "no pixel"),
        (lambda: ThresholdSweep(3).update(np.zeros((1, 2, 2)), [2], np.zeros((2, 2))), "0-based"),
        (lambda: ThresholdSweep(3).update(np.zeros((1, 2, 2)), [0], np.zeros((2, 3))), "do not fit"),
        (lambda: ThresholdSweep(3).update(np.full((1, 2, 2), np.nan), [0], np.zeros((2, 2))), "NaN"),
    ],
)
def test_errors_say_what_is_wrong(call, message):
    with pytest.raises(GwsssError, match=message):
        call()
