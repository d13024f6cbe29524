"""Metrics against scikit-learn, and exactness over uneven batches."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from vitkit.train.metrics import Metrics, MetricsSum

sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn, the reference, is missing")


def counted(logits: np.ndarray, labels: np.ndarray, *ends: int) -> Metrics:
    """Return the metrics of rows that came in batches ending at ``ends``."""
    total = MetricsSum([f"c{k}" for k in range(logits.shape[1])])
    start = 0
    for end in (*ends, len(labels)):
        part = slice(start, end)
        total.add(logits[part], labels[part], float(labels[part].mean()))
        start = end
    return total.result()


@pytest.mark.parametrize("classes", [2, 5, 6, 10])
def test_it_agrees_with_scikit_learn(classes: int, rng: np.random.Generator) -> None:
    labels = rng.integers(0, classes - 1, 137)  # the last class never occurs
    logits = rng.normal(size=(137, classes)).astype(np.float32)
    logits[np.arange(137), labels] += 0.7
    logits[:, 0] = -9.0  # and the first is never guessed
    found = counted(logits, labels, 100, 101)
    guesses, every = logits.argmax(axis=1), np.arange(classes)
    assert found.accuracy == sklearn.accuracy_score(labels, guesses)
    np.testing.assert_array_equal(
        found.confusion, sklearn.confusion_matrix(labels, guesses, labels=every)
    )
    if classes > 5:
        top5 = sklearn.top_k_accuracy_score(labels, logits, k=5, labels=every)
        assert found.top5 == pytest.approx(top5, rel=1e-15)
        assert found.top5 < 1
    else:
        assert found.top5 == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = sklearn.precision_recall_fscore_support(
            labels, guesses, labels=every, zero_division=0
        )
    rows = found.per_class()
    assert [row["class"] for row in rows] == list(found.classes)
    for name, column in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        np.testing.assert_allclose([row[name] for row in rows], column, rtol=1e-14, err_msg=name)


@pytest.mark.parametrize("ends", [(), (1,), (64,), (5, 6, 60)])
def test_it_does_not_depend_on_how_the_images_are_batched(
    ends: tuple[int, ...], rng: np.random.Generator
) -> None:
    labels, logits = rng.integers(0, 7, 65), rng.normal(size=(65, 7))
    found, whole = counted(logits, labels, *ends), counted(logits, labels)
    assert (found.accuracy, found.top5, found.count) == (whole.accuracy, whole.top5, 65)
    assert found.loss == pytest.approx(labels.mean(), rel=1e-14)  # "loss" is the label here


def test_logits_that_are_no_numbers_are_no_hits() -> None:
    assert counted(np.full((4, 9), np.nan), np.array([0, 3, 5, 8])).top5 == 0


def test_a_result_stays_when_more_is_counted() -> None:
    total = MetricsSum(["a", "b"])
    total.add(np.eye(2), np.array([0, 1]), 0.5)
    before = total.result()
    total.add(np.eye(2), np.array([1, 0]), 0.5)
    assert (before.count, total.result().count) == (2, 4)


def test_nothing_to_count_is_an_error() -> None:
    with pytest.raises(ValueError, match="no images were counted"):
        MetricsSum(["a", "b"]).result()


def test_plain_values_are_json(rng: np.random.Generator) -> None:
    import json

    found = counted(rng.normal(size=(9, 3)), rng.integers(0, 3, 9))
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()
