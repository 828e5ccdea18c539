"""The vocabulary: pairs of activities with the same actions in reverse order."""

from __future__ import annotations

from preprocessing.demo.vocabulary import ACTIVITY_PAIRS


def test_every_activity_has_a_counterpart_with_reversed_steps() -> None:
    for forward, backward in ACTIVITY_PAIRS:
        assert set(forward.steps) == set(backward.steps)
        assert forward.steps == backward.steps[::-1]
        assert forward.steps != backward.steps
        assert forward.tag_verb != backward.tag_verb
    for k in range(2, len(ACTIVITY_PAIRS) + 1):
        sets = [frozenset(pair[0].steps) for pair in ACTIVITY_PAIRS[:k]]
        assert len(set(sets)) == k
        for one in sets:  # not even the first step gives the pair away
            assert any(one & other for other in sets if other != one)
