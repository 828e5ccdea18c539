"""Marks multiple-choice questions, ties included, and makes the options of ShuffleMCQ.

Accuracy is the share of questions whose right option has the highest similarity with the text (EgoVLP, section 3.3,
EgoMCQ; HierVL, section 4, SummaryMCQ and ShuffleMCQ). The released `egomcq_accuracy_metrics` takes the first of
tied options; here a right option that shares the highest score with k − 1 others counts 1/k, so that a model that
gives all options the same score is at chance, wherever the answers stand.

Shapes in names: Q questions, K options of a question (the most that any has), O options, W windows.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class GroupScore:
    """The accuracy of one group of questions."""

    accuracy: float  # percent of those scored; NaN where none is
    items: int  # scored
    of: int  # asked
    tied: int  # scored ones whose right option shares the highest score


@dataclass(frozen=True, kw_only=True, eq=False)
class Marks:
    """What each question got, and each group."""

    score_Q: np.ndarray  # percent: 100, 0, or 100/k; NaN for a question that is not scored
    predicted_Q: np.ndarray  # int64: the option of the highest score, the first of tied ones; −1 where not scored
    tied_Q: np.ndarray  # bool: the right option shares the highest score
    groups: dict[str, GroupScore]  # in order of appearance


def score_questions(
    scores_QK: np.ndarray,
    answers_Q: Sequence[int] | np.ndarray,
    groups_Q: Sequence[str],
    counts_Q: Sequence[int] | np.ndarray | None = None,
) -> Marks:
    """Return the marks of questions from the scores of their options.

    NaN is the score of an option that could not be had: its question is asked, but not scored, as it would be easier
    than it is. `counts_Q` says how many options each question has where they differ; the rest of its row is ignored.
    An answer that is none of the options, or a question without options, is a `ValueError` that names it.
    """
    scores_QK = np.asarray(scores_QK, dtype=np.float64)
    answers_Q = np.asarray(answers_Q, dtype=np.int64)
    if scores_QK.ndim != 2 or not len(scores_QK) == len(answers_Q) == len(groups_Q):
        raise ValueError(f"scores {scores_QK.shape}, {len(answers_Q)} answers and {len(groups_Q)} groups do not match")
    most = scores_QK.shape[1]
    counts = np.full(len(scores_QK), most) if counts_Q is None else np.asarray(counts_Q, dtype=np.int64)
    for bad, what in (((counts < 1) | (counts > most), "options"), ((answers_Q < 0) | (answers_Q >= counts), "answer")):
        if bad.any():
            row = int(np.argmax(bad))
            raise ValueError(f"question {row}: {what} {(answers_Q if what == 'answer' else counts)[row]}, of {most}")
    is_option = np.arange(most) < counts[:, None]
    is_scored = ~(np.isnan(scores_QK) & is_option).any(axis=1)
    options = np.where(is_option & is_scored[:, None], scores_QK, -np.inf)
    best = (options == options.max(axis=1, keepdims=True, initial=-np.inf)) & is_option
    shares = best.sum(axis=1)
    is_right = best[np.arange(len(best)), answers_Q]
    tied_Q = is_scored & is_right & (shares > 1)
    score_Q = np.where(is_scored, np.where(is_right, 100.0 / np.maximum(shares, 1), 0.0), np.nan)
    names = np.asarray(groups_Q, dtype=object)
    groups = {}
    for name in dict.fromkeys(groups_Q):
        inside = names == name
        scored = inside & is_scored
        groups[name] = GroupScore(
            accuracy=float(score_Q[scored].mean()) if scored.any() else math.nan,
            items=int(scored.sum()),
            of=int(inside.sum()),
            tied=int(tied_Q[scored].sum()),
        )
    predicted_Q = np.where(is_scored, best.argmax(axis=1), -1) if most else np.full(len(best), -1)
    return Marks(score_Q=score_Q, predicted_Q=predicted_Q, tied_Q=tied_Q, groups=groups)


@dataclass(frozen=True, kw_only=True, eq=False)
class ShuffleOptions:
    """The options of one ShuffleMCQ question: orders of a summary's windows, one of them the right one."""

    orders_OW: np.ndarray  # int64: option o shows window orders[o, w] at place w
    answer: int  # which option is the identity
    wanted: int  # options asked for; len(orders_OW) is less where there are not so many orders


def shuffle_options(windows: int, options: int, seed: int, question_id: str) -> ShuffleOptions:
    """Return the right order of `windows` windows among others, all distinct: a function of the arguments alone.

    Two windows have only one wrong order and three have five, so there may be fewer than `options`; chance is then
    1 / len(orders_OW). Fewer than 2 windows or options are a `ValueError`.
    """
    if windows < 2:
        raise ValueError(f"windows = {windows}: the order of fewer than 2 cannot be wrong")
    if options < 2:
        raise ValueError(f"options = {options}: a question needs at least 2")
    rng = rng_of("shuffle", seed, windows, options, question_id)
    identity = tuple(range(windows))
    if windows <= 6:  # at most 720 orders: all of them, shuffled
        wrong = [order for order in itertools.permutations(identity) if order != identity]
        orders = [wrong[i] for i in rng.permutation(len(wrong))[: options - 1]]
    else:
        if options > math.factorial(7):
            raise ValueError(f"options = {options}: more than the orders of 7 windows")
        found: dict[tuple[int, ...], None] = {}
        while len(found) < options - 1:
            order = tuple(rng.permutation(windows).tolist())
            if order != identity:
                found[order] = None
        orders = list(found)
    answer = int(rng.integers(len(orders) + 1))
    orders.insert(answer, identity)
    return ShuffleOptions(orders_OW=np.asarray(orders, dtype=np.int64), answer=answer, wanted=options)


def rng_of(*parts: object) -> np.random.Generator:
    """Return random numbers that depend on these parts alone, the same on every machine."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode(errors="surrogatepass")).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))
