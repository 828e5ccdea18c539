"""Similarities equal the released ones, and equal embeddings tie to the last bit."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from eval.metrics.similarity import cosine, dual_softmax, option_similarities
from tests.hiervl_train.reference import dual_softmax as released_dual_softmax


def test_options_have_their_cosine_and_missing_ones_nan() -> None:
    rng = np.random.default_rng(1)
    queries, clips = rng.standard_normal((1300, 6)), rng.standard_normal((9, 6))
    choices = rng.integers(-1, 9, (1300, 4))
    found = option_similarities(queries, clips, choices)
    for query, option in itertools.product((0, 511, 512, 1299), range(4)):
        clip = choices[query, option]
        direct = queries[query] @ clips[clip] / np.linalg.norm(queries[query]) / np.linalg.norm(clips[clip])
        assert math.isnan(found[query, option]) if clip < 0 else found[query, option] == pytest.approx(direct)
    with pytest.raises(ValueError, match="question 1, option 0: row 9 of 9 clips"):
        option_similarities(queries[:2], clips, np.array([[0], [9]]))


def test_options_with_equal_embeddings_tie() -> None:
    rng = np.random.default_rng(2)
    clips = np.repeat(rng.standard_normal((1, 255)), 4, axis=0) * np.array([[1.0], [1.0], [3.0], [0.1]])
    found = option_similarities(rng.standard_normal((40, 255)), clips, np.tile(np.arange(4), (40, 1)))
    assert (found == found[:, :1]).all()


def test_the_dual_softmax_is_the_released_one_of_all_sentences() -> None:
    rng = np.random.default_rng(2)
    text, video = 8 * rng.standard_normal((1100, 24)), 8 * rng.standard_normal((700, 24))
    rows = rng.permutation(1100)[:600]
    whole = released_dual_softmax(torch.from_numpy(text), torch.from_numpy(video)).numpy()
    np.testing.assert_allclose(np.exp(dual_softmax(text, video, rows)), whole[rows].T, rtol=1e-9)


def test_the_dual_softmax_of_large_scores_does_not_underflow() -> None:
    rng = np.random.default_rng(3)
    text, video = 40 * rng.standard_normal((200, 8)), 40 * rng.standard_normal((4, 8))
    found = dual_softmax(text, video, np.arange(200))
    assert np.isfinite(found).all() and np.exp(found).sum(axis=1) == pytest.approx(np.ones(4))
    assert (np.exp(found) == 0).sum() > 100  # which all tied in the released scores
    assert min(len(np.unique(scores)) for scores in found) > 150


def test_equal_embeddings_have_equal_similarities_to_the_last_bit() -> None:
    rng = np.random.default_rng(4)
    one, many = rng.standard_normal((1, 257)), rng.standard_normal((61, 257))
    for sim in (cosine(np.repeat(one, 1001, axis=0), many), cosine(many, np.repeat(one, 1001, axis=0)).T):
        assert (sim == sim[0]).all()


def test_cosine_is_the_released_similarity() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.standard_normal((6, 5)), rng.standard_normal((4, 5))
    a[2] = 0
    direct = [[x @ y / (max(np.sqrt(x @ x), 1e-8) * max(np.sqrt(y @ y), 1e-8)) for y in b] for x in a]
    np.testing.assert_allclose(cosine(a, b), direct, atol=1e-11)


def test_embeddings_that_are_not_finite_or_of_different_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="first embeddings: row 1 is not finite"):
        cosine(np.array([[0.0], [np.nan]]), np.ones((1, 1)))
    with pytest.raises(ValueError, match="widths 3 and 2"):
        cosine(np.ones((1, 3)), np.ones((1, 2)))
