"""Streams of random numbers by counting."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitkit.backend import philox

WORD = st.integers(0, 2**64 - 1)


def test_the_first_numbers_are_what_they_always_were() -> None:
    # A change here changes every run ever made with a given seed.
    assert philox(0, "order").integers(0, 2**32, 3).tolist() == [1624863858, 3600038249, 3153701269]
    assert philox(7, "dropout", 1, 2, 3).random(2).tolist() == [
        0.7381755681002324,
        0.470955595121601,
    ]


@given(WORD, st.text(max_size=20), st.lists(WORD, max_size=3))
def test_the_same_words_give_the_same_numbers(seed: int, purpose: str, indices: list[int]) -> None:
    first, again = (philox(seed, purpose, *indices).random(4) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_every_word_matters() -> None:
    words: list[tuple[int, str, tuple[int, ...]]] = [
        (seed, purpose, indices)
        for seed in (0, 1, 2**64 - 1)
        for purpose in ("augment", "dropout", "")
        for indices in ((), (1,), (0, 1), (0, 0, 1), (1, 1), (2**64 - 1,))
    ]
    draws = {philox(seed, purpose, *indices).bytes(16) for seed, purpose, indices in words}
    assert len(draws) == len(words)


def test_left_out_indices_are_zero() -> None:
    assert philox(3, "x").random() == philox(3, "x", 0, 0, 0).random()


def test_neighbouring_streams_never_meet() -> None:
    # 2**14 numbers from each: were the index a start in one sequence, these would overlap.
    streams = [set(philox(0, "augment", i).integers(0, 2**63, 2**14).tolist()) for i in range(4)]
    for one, other in itertools.combinations(streams, 2):
        assert not one & other


def test_drawing_from_one_stream_leaves_others_alone() -> None:
    expected = philox(0, "b").random(5)
    first, second = philox(0, "a"), philox(0, "b")
    first.random(1000)
    np.random.default_rng(0).random(10)
    np.testing.assert_array_equal(second.random(5), expected)


def test_numbers_are_uniform_across_indices() -> None:
    # The first number of each of many streams: what augmentation draws, one stream a sample.
    firsts = np.array([philox(0, "augment", 0, sample).random() for sample in range(4000)])
    counts = np.histogram(firsts, bins=10, range=(0, 1))[0]
    assert abs(counts - 400).max() < 5 * np.sqrt(400 * 0.9)
    assert abs(np.corrcoef(firsts[:-1], firsts[1:])[0, 1]) < 5 / np.sqrt(4000)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, "x"), "The seed must be a whole number between 0 and .* got -1"),
        ((2**64, "x"), "The seed must be"),
        ((0, "x", 0, -2), "An index must be .* got -2"),
        ((0, "x", 2**64), "An index must be"),
        ((0, "x", 1, 2, 3, 4), r"at most 3 indices; got 4: \(1, 2, 3, 4\)"),
    ],
)
def test_words_out_of_range_are_refused(arguments: tuple[int, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        philox(*arguments)
