"""Similarities that decide rankings, in float64, such that equal embeddings tie wherever they stand.

Shapes in names: N, M, V, S rows of embeddings (V videos, S sentences), D embedding width, Q questions, K options each.
"""

from __future__ import annotations

import numpy as np

_EPS = 1e-8  # as the released `sim_matrix` divides
_BLOCK = 512  # rows at a time
_BITS = 40  # of the largest value: a matrix product sums in an order that depends on where a row stands


def cosine(a_ND: np.ndarray, b_MD: np.ndarray) -> np.ndarray:
    """Return cosine similarities (N, M) in float64; raise `ValueError` where an embedding is not finite."""
    a_ND, b_MD = _unit(a_ND, "the first embeddings"), _unit(b_MD, "the second embeddings")
    _same_width(a_ND, b_MD)
    return settle(a_ND @ b_MD.T)


def option_similarities(queries_QD: np.ndarray, clips_MD: np.ndarray, choices_QK: np.ndarray) -> np.ndarray:
    """Return the cosine similarity (Q, K) of each question with each of its options.

    `choices_QK` are rows of `clips_MD`; −1, an option that is absent, gives NaN. A row out of range is a `ValueError`.
    """
    choices_QK = np.asarray(choices_QK)
    if choices_QK.ndim != 2 or len(choices_QK) != len(queries_QD):
        raise ValueError(f"choices {choices_QK.shape} for {len(queries_QD)} questions: one row each is expected")
    outside = np.argwhere((choices_QK < -1) | (choices_QK >= len(clips_MD)))
    if len(outside):
        row, column = outside[0]
        raise ValueError(f"question {row}, option {column}: clip {choices_QK[row, column]} of {len(clips_MD)}")
    queries_QD, clips_MD = _unit(queries_QD, "the questions' embeddings"), _unit(clips_MD, "the clips' embeddings")
    if not len(clips_MD):
        return np.full(choices_QK.shape, np.nan)
    _same_width(queries_QD, clips_MD)
    found = np.empty(choices_QK.shape)
    for start in range(0, len(choices_QK), _BLOCK):
        rows = slice(start, start + _BLOCK)
        found[rows] = (queries_QD[rows, None] * clips_MD[choices_QK[rows]]).sum(-1)
    return np.where(choices_QK < 0, np.nan, settle(found))


def dual_softmax(
    text_ND: np.ndarray, video_MD: np.ndarray, rows: np.ndarray, *, temperature: float = 500.0
) -> np.ndarray:
    """Return the logarithm of the released EPIC test's scores of all M videos against the sentences `rows`: (M, S).

    Its exponential is `hiervl_train.compat.dual_softmax(text, video)[rows].T`, and ranks the same, but small scores do
    not become 0 (and so tie), and the matrix of all N sentences is never held: for the N = M = 9,668 of
    EPIC-KITCHENS-100 that function needs several of 0.75 GB.
    """
    text_ND, video_MD = _finite(text_ND, "the sentences' embeddings"), _finite(video_MD, "the videos' embeddings")
    _same_width(text_ND, video_MD)
    rows = np.asarray(rows, dtype=np.int64)
    top_M, mass_M = np.full(len(video_MD), -np.inf), np.zeros(len(video_MD))
    for start in range(0, len(text_ND), _BLOCK):
        block = _weighted(text_ND[start : start + _BLOCK], video_MD, temperature)
        top = np.maximum(top_M, block.max(axis=0))
        mass_M = mass_M * np.exp(top_M - top) + np.exp(block - top).sum(axis=0)
        top_M = top
    picked_MS = np.empty((len(video_MD), len(rows)))
    for start in range(0, len(rows), _BLOCK):
        block = _weighted(text_ND[rows[start : start + _BLOCK]], video_MD, temperature)
        picked_MS[:, start : start + _BLOCK] = (block - top_M - np.log(mass_M)).T
    return settle(picked_MS)


def settle(scores: np.ndarray) -> np.ndarray:
    """Return float64 scores rounded, in place, to 2⁻⁴⁰ of the largest: what differs by less differs by rounding only.

    Such scores then tie, and a tie is counted as one, rather than being decided by the order of a sum.
    """
    largest = np.abs(scores).max(initial=0.0)
    if not largest > 0:
        return scores
    step = 2.0 ** (np.ceil(np.log2(largest)) - _BITS)
    if step == 0:
        return scores
    scores /= step
    np.rint(scores, out=scores)
    scores *= step
    return scores


def _weighted(text_ND: np.ndarray, video_MD: np.ndarray, temperature: float) -> np.ndarray:
    """Return softmax over videos of S / temperature, times S, for some sentences."""
    scores = text_ND @ video_MD.T
    weights = scores / temperature
    weights -= weights.max(axis=1, keepdims=True)
    np.exp(weights, out=weights)
    weights /= weights.sum(axis=1, keepdims=True)
    weights *= scores
    return weights


def _unit(x_ND: np.ndarray, name: str) -> np.ndarray:
    x_ND = _finite(x_ND, name)
    norms = np.sqrt((x_ND * x_ND).sum(axis=1, keepdims=True))
    return x_ND / np.maximum(norms, _EPS)


def _finite(x_ND: np.ndarray, name: str) -> np.ndarray:
    x_ND = np.ascontiguousarray(x_ND, dtype=np.float64)
    if x_ND.ndim != 2:
        raise ValueError(f"{name} have the shape {x_ND.shape}: (rows, width) is expected")
    bad = np.flatnonzero(~np.isfinite(x_ND).all(axis=1))
    if len(bad):
        raise ValueError(f"{name}: row {bad[0]} is not finite ({len(bad)} of {len(x_ND)} rows)")
    return x_ND


def _same_width(a_ND: np.ndarray, b_MD: np.ndarray) -> None:
    if a_ND.shape[1] != b_MD.shape[1]:
        raise ValueError(f"embeddings of widths {a_ND.shape[1]} and {b_MD.shape[1]} cannot be compared")
