"""Scores multiple-choice questions and makes the options of ShuffleMCQ.

Accuracy is the share of questions whose correct option has the highest similarity with the text (EgoVLP, section 3.3,
EgoMCQ; HierVL, section 4, SummaryMCQ and ShuffleMCQ). The released `egomcq_accuracy_metrics` takes the first of tied
options; here a correct option that shares the highest score with k − 1 others counts 1/k. A model that gives all
options the same score is then at chance, whatever the order of options.

Shapes in names: Q questions, K options of a question (the most of any), O options, W windows.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class GroupAccuracy:
    """The accuracy of one group of questions."""

    accuracy: float  # percent of the scored questions; NaN if there are none
    items: int  # scored questions
    of: int  # all questions of the group
    tied: int  # scored questions whose correct option shares the highest score
    chance: float  # percent, the accuracy of random scores on the scored questions; NaN if there are none


@dataclass(frozen=True, kw_only=True, eq=False)
class McqScores:
    """The score of each question and the accuracy of each group."""

    score_Q: np.ndarray  # percent: 100, 0, or 100/k; NaN for a question that is not scored
    predicted_Q: np.ndarray  # int64: the option of the highest score, the first of tied ones; −1 if not scored
    tied_Q: np.ndarray  # bool: the correct option shares the highest score
    groups: dict[str, GroupAccuracy]  # in order of first appearance

    @property
    def is_scored_Q(self) -> np.ndarray:
        """Whether each question is scored: all of its options have a score."""
        is_scored_Q: np.ndarray = self.predicted_Q >= 0
        return is_scored_Q


def score_questions(
    scores_QK: np.ndarray,
    answers_Q: Sequence[int] | np.ndarray,
    groups_Q: Sequence[str],
    counts_Q: Sequence[int] | np.ndarray | None = None,
) -> McqScores:
    """Return the scores of questions from the scores of their options (Q, K).

    The score of a missing option is NaN; its question is not scored, as it would be easier without the option.
    `answers_Q` are the correct options, `groups_Q` names of groups. `counts_Q` are the numbers of options, if they
    differ; the rest of a row is ignored. Raises `ValueError` for a question without options or with an answer that is
    none of them.
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
    is_correct = best[np.arange(len(best)), answers_Q]
    tied_Q = is_scored & is_correct & (shares > 1)
    score_Q = np.where(is_scored, np.where(is_correct, 100.0 / np.maximum(shares, 1), 0.0), np.nan)
    names = np.asarray(groups_Q, dtype=object)
    groups = {}
    for name in dict.fromkeys(groups_Q):
        inside = names == name
        scored = inside & is_scored
        groups[name] = GroupAccuracy(
            accuracy=float(score_Q[scored].mean()) if scored.any() else math.nan,
            items=int(scored.sum()),
            of=int(inside.sum()),
            tied=int(tied_Q[scored].sum()),
            chance=float((100.0 / counts[scored]).mean()) if scored.any() else math.nan,
        )
    predicted_Q = np.where(is_scored, best.argmax(axis=1), -1) if most else np.full(len(best), -1)
    return McqScores(score_Q=score_Q, predicted_Q=predicted_Q, tied_Q=tied_Q, groups=groups)


@dataclass(frozen=True, kw_only=True, eq=False)
class ShuffleOptions:
    """The options of one ShuffleMCQ question: the temporal order of a summary's windows among wrong orders."""

    orders_OW: np.ndarray  # int64: option o has window orders_OW[o, w] at position w
    answer: int  # the option that is the identity
    wanted: int  # options requested; len(orders_OW) is less if there are not enough orders


def shuffle_options(windows: int, options: int, seed: int, question_id: str) -> ShuffleOptions:
    """Return distinct orders of `windows` windows, one of them the identity: a function of the arguments alone.

    Two windows have only one wrong order and three have five, so there may be fewer than `options`; chance is then
    1 / len(orders_OW). Raises `ValueError` for fewer than 2 windows or options.
    """
    if windows < 2:
        raise ValueError(f"windows = {windows}: at least 2 are needed for a wrong order")
    if options < 2:
        raise ValueError(f"options = {options}: a question needs at least 2")
    rng = keyed_rng("shuffle", seed, windows, options, question_id)
    identity = tuple(range(windows))
    if windows <= 6:  # at most 720 orders: all of them, shuffled
        wrong = [order for order in itertools.permutations(identity) if order != identity]
        orders = [wrong[i] for i in rng.permutation(len(wrong))[: options - 1]]
    else:
        if options > math.factorial(7):
            raise ValueError(f"options = {options}: more than the 5,040 orders of 7 windows")
        distinct: dict[tuple[int, ...], None] = {}
        while len(distinct) < options - 1:
            order = tuple(rng.permutation(windows).tolist())
            if order != identity:
                distinct[order] = None
        orders = list(distinct)
    answer = int(rng.integers(len(orders) + 1))
    orders.insert(answer, identity)
    return ShuffleOptions(orders_OW=np.asarray(orders, dtype=np.int64), answer=answer, wanted=options)


def keyed_rng(*parts: object) -> np.random.Generator:
    """Return a generator seeded by a hash of `parts`: the same numbers for the same parts on every machine."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode(errors="surrogatepass")).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))
