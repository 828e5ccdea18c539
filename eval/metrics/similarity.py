"""Similarities for ranking, in float64, such that equal embeddings tie wherever their rows are.

Shapes in names: N, M, V, S rows of embeddings (V videos, S sentences), D embedding width, Q questions, K options each.
"""

from __future__ import annotations

import numpy as np

_EPS = 1e-8  # as the released `sim_matrix` divides
_BLOCK = 512  # rows per block, which bounds memory
_BITS = 40  # precision kept, relative to the largest value: a matrix product's order of summation depends on the row


def cosine(a_ND: np.ndarray, b_MD: np.ndarray) -> np.ndarray:
    """Return cosine similarities (N, M) in float64; raise `ValueError` if an embedding is not finite."""
    a_ND, b_MD = _unit(a_ND, "the first embeddings"), _unit(b_MD, "the second embeddings")
    _require_same_width(a_ND, b_MD)
    return round_scores(a_ND @ b_MD.T)


def option_similarities(queries_QD: np.ndarray, clips_MD: np.ndarray, choices_QK: np.ndarray) -> np.ndarray:
    """Return the cosine similarity (Q, K) of each question with each of its options.

    `choices_QK` are rows of `clips_MD`; a missing option, −1, has the similarity NaN. Raises `ValueError` for a row out
    of range.
    """
    choices_QK = np.asarray(choices_QK)
    if choices_QK.ndim != 2 or len(choices_QK) != len(queries_QD):
        raise ValueError(f"choices {choices_QK.shape} for {len(queries_QD)} questions: one row per question is needed")
    outside = np.argwhere((choices_QK < -1) | (choices_QK >= len(clips_MD)))
    if len(outside):
        row, column = outside[0]
        raise ValueError(f"question {row}, option {column}: row {choices_QK[row, column]} of {len(clips_MD)} clips")
    queries_QD, clips_MD = _unit(queries_QD, "the questions' embeddings"), _unit(clips_MD, "the clips' embeddings")
    if not len(clips_MD):
        return np.full(choices_QK.shape, np.nan)
    _require_same_width(queries_QD, clips_MD)
    sim_QK = np.empty(choices_QK.shape)
    for start in range(0, len(choices_QK), _BLOCK):
        rows = slice(start, start + _BLOCK)
        sim_QK[rows] = (queries_QD[rows, None] * clips_MD[choices_QK[rows]]).sum(-1)
    return np.where(choices_QK < 0, np.nan, round_scores(sim_QK))


def dual_softmax(
    text_ND: np.ndarray, video_MD: np.ndarray, rows: np.ndarray, *, temperature: float = 500.0
) -> np.ndarray:
    """Return the logarithm of the released EPIC test's similarities (M, S) of all videos with the sentences `rows`.

    With sim = text · videoᵀ (N, M), those are softmax over N of ((softmax over M of sim / temperature) · sim).
    Their logarithm ranks alike, but small values do not underflow to 0 and tie. The matrix of all N sentences is never
    held: for N = M = 9,668 of EPIC-KITCHENS-100 it takes 0.75 GB, and the plain formula needs several.
    """
    text_ND, video_MD = _finite(text_ND, "the sentences' embeddings"), _finite(video_MD, "the videos' embeddings")
    _require_same_width(text_ND, video_MD)
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
    return round_scores(picked_MS)


def round_scores(scores: np.ndarray) -> np.ndarray:
    """Round float64 scores, in place, to 2⁻⁴⁰ of the largest magnitude, and return them.

    Scores that differ by rounding errors only then tie, rather than being ranked by the order of a summation.
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
    """Return (softmax over videos of sim / temperature) · sim of some sentences: (N, M)."""
    scores: np.ndarray = text_ND @ video_MD.T
    weights = scores / temperature
    weights -= weights.max(axis=1, keepdims=True)
    np.exp(weights, out=weights)
    weights /= weights.sum(axis=1, keepdims=True)
    weights *= scores
    return weights


def _unit(x_ND: np.ndarray, name: str) -> np.ndarray:
    x_ND = _finite(x_ND, name)
    norms_N1 = np.sqrt((x_ND * x_ND).sum(axis=1, keepdims=True))
    unit_ND: np.ndarray = x_ND / np.maximum(norms_N1, _EPS)
    return unit_ND


def _finite(x_ND: np.ndarray, name: str) -> np.ndarray:
    x_ND = np.ascontiguousarray(x_ND, dtype=np.float64)
    if x_ND.ndim != 2:
        raise ValueError(f"{name} have the shape {x_ND.shape}: must be (rows, width)")
    bad = np.flatnonzero(~np.isfinite(x_ND).all(axis=1))
    if len(bad):
        raise ValueError(f"{name}: row {bad[0]} is not finite ({len(bad)} of {len(x_ND)} rows)")
    return x_ND


def _require_same_width(a_ND: np.ndarray, b_MD: np.ndarray) -> None:
    if a_ND.shape[1] != b_MD.shape[1]:
        raise ValueError(f"embeddings of widths {a_ND.shape[1]} and {b_MD.shape[1]} cannot be compared")
