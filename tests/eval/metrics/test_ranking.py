"""Average precision and DCG of rankings equal the mean of their definitions over all orders of tied items."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.metrics.ranking import Ranking

ITEMS = st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([-1.0, 0.0, 0.5])), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(ITEMS, st.integers(0, 5))
def test_ties_give_the_mean_over_their_orders(items: list[tuple[float, float]], cut: int) -> None:
    gains, scores = np.array([item[0] for item in items]), np.array([item[1] for item in items])
    ranking = Ranking(scores[None])
    ranked_QM = ranking.arrange(gains[None])
    precisions, dcgs = [], []
    for order in map(list, itertools.permutations(range(len(items)))):
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order)):
            relevant = np.flatnonzero(gains[order] == 1)
            sums = np.cumsum(gains[order])
            precisions.append(np.mean([sums[k] / (k + 1) for k in relevant]) if len(relevant) else np.nan)
            dcgs.append(sum(gain / np.log2(k + 2) for k, gain in enumerate(gains[order][:cut])))
    assert ranking.average_precision(ranked_QM == 1, ranked_QM)[0] == pytest.approx(np.mean(precisions), nan_ok=True)
    assert ranking.discounted_gain(ranked_QM, np.array([cut]))[0] == pytest.approx(np.mean(dcgs))
    runs = [set(gains[scores == score].tolist()) for score in set(scores.tolist())]
    assert ranking.depends_on_order(ranked_QM)[0] == any(len(run) > 1 for run in runs)


def test_a_score_that_is_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="query 1: a score is NaN"):
        Ranking(np.array([[0.0], [np.nan]]))
