"""Joins hits that show one moment: what two annotators described of the same seconds of a video."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from shards.search.catalog import Found

_LEAST_OVERLAP = 0.5  # intersection ÷ union of two intervals of one moment


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A hit, and the other hits that show the same moment."""

    score: float
    sample: Found
    others: tuple[Found, ...] = ()  # of other annotation passes, best first


def join_passes(hits: Iterable[tuple[float, Found]], count: int) -> list[Moment]:
    """Return up to `count` moments of hits that are sorted by score, best first.

    Samples of one set and video are one moment if different annotators made them (another pass in their keys) and at
    least half of the time that they cover is covered by both.
    """
    moments: list[Moment] = []
    for score, sample in hits:
        for place, moment in enumerate(moments):
            members = (moment.sample, *moment.others)
            if _is_same(moment.sample, sample) and sample.annotation_pass not in {m.annotation_pass for m in members}:
                moments[place] = Moment(score=moment.score, sample=moment.sample, others=(*moment.others, sample))
                break
        else:
            if len(moments) < count:
                moments.append(Moment(score=score, sample=sample))
    return moments


def _is_same(one: Found, other: Found) -> bool:
    if (one.set_name, one.video_uid) != (other.set_name, other.video_uid):
        return False
    both = min(one.stop, other.stop) - max(one.start, other.start)
    return both > 0 and both >= _LEAST_OVERLAP * (max(one.stop, other.stop) - min(one.start, other.start))
