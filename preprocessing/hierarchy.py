"""Gives each summary the narrations inside its span, by one interval join over all videos."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocessing.annotations.merge import sort_by_start

EPSILON = (
    1e-6  # s; times come through decimal text and sums, so bounds that are meant to touch may differ in the last bits
)
_PAIRS = 1 << 22  # candidate pairs looked at together: bounds memory, decides nothing


@dataclass(frozen=True, kw_only=True)
class Hierarchy:
    """Which narrations each summary has, as compressed rows.

    Summary i has the narrations `rows[offsets[i]:offsets[i + 1]]`: row numbers of the narrations table that was
    joined, in time order (clip_start, then key). A summary without narrations has an empty stretch.
    """

    offsets: np.ndarray  # int64, one more than there are summaries
    rows: np.ndarray  # int64

    def __len__(self) -> int:
        """Return the number of summaries."""
        return len(self.offsets) - 1

    @property
    def counts(self) -> np.ndarray:
        """How many narrations each summary has, int64."""
        return np.diff(self.offsets)

    def narrations_of(self, summary: int) -> np.ndarray:
        """Return the narration rows of the summary in row `summary`, in time order, as a view."""
        if not 0 <= summary < len(self):
            raise IndexError(f"summary {summary} of {len(self)}")
        return self.rows[self.offsets[summary] : self.offsets[summary + 1]]


def join(narrations: pa.Table, summaries: pa.Table, *, match_pass: bool) -> Hierarchy:
    """Return, for each row of `summaries`, the rows of `narrations` of the same video that lie wholly in its span.

    Wholly means `clip_start ≥ start − EPSILON` and `clip_end ≤ end + EPSILON`. With `match_pass` the annotator pass
    must be the same as well. Rows are told apart by where they are in the tables, never by their text, so equal
    texts do not collide. Both tables may be in any order; the columns used are video_uid, narration_source,
    clip_start, clip_end (s, no NaN) and key.

    A summary's candidates are one stretch of the narrations sorted by (video, start), found by binary search for
    all summaries at once; the ends of the candidates are then compared. Time O((N + S) log N + candidates).
    """
    group, wanted = _groups(narrations, summaries, match_pass)
    start, end = _seconds(narrations, "clip_start"), _seconds(narrations, "clip_end")
    order = sort_by_start(group, start, narrations["key"])
    # Ranks of the distinct starts in place of the starts: (video, rank) fits one integer, so one search serves all.
    distinct = np.unique(start)
    width = len(distinct) + 1
    place = group[order] * width + np.searchsorted(distinct, start[order])
    first, last = _seconds(summaries, "clip_start") - EPSILON, _seconds(summaries, "clip_end") + EPSILON
    begin = np.searchsorted(place, wanted * width + np.searchsorted(distinct, first, side="left"))
    stop = np.searchsorted(place, wanted * width + np.searchsorted(distinct, last, side="right"))
    stop = np.maximum(begin, np.where(wanted < 0, begin, stop))
    return _inside(begin, stop, end[order], last, order)


def _inside(begin: np.ndarray, stop: np.ndarray, end: np.ndarray, last: np.ndarray, order: np.ndarray) -> Hierarchy:
    """Return the candidates [begin, stop) of each summary whose `end` is at most the summary's `last`."""
    candidates = stop - begin
    total = np.concatenate([[0], np.cumsum(candidates)])
    counts = np.zeros(len(begin), np.int64)
    found = [np.empty(0, np.int64)]
    at = 0
    while at < len(begin):
        # As many whole summaries as fit, and at least one.
        to = max(at + 1, int(np.searchsorted(total, total[at] + _PAIRS, side="right")) - 1)
        summary = np.repeat(np.arange(at, to), candidates[at:to])
        position = np.arange(total[at], total[to]) - (total[:-1] - begin)[summary]
        inside = end[position] <= last[summary]
        counts[at:to] = np.bincount(summary[inside] - at, minlength=to - at)
        found.append(order[position[inside]])
        at = to
    return Hierarchy(offsets=np.concatenate([[0], np.cumsum(counts)]), rows=np.concatenate(found))


def _groups(narrations: pa.Table, summaries: pa.Table, match_pass: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of each narration's video (and pass), and of each summary's, −1 where no narration has it."""
    group = np.zeros(narrations.num_rows, np.int64)
    wanted = np.zeros(summaries.num_rows, np.int64)
    for name in ("video_uid", "narration_source") if match_pass else ("video_uid",):
        encoded = narrations[name].combine_chunks().dictionary_encode()
        codes = pc.index_in(summaries[name], encoded.dictionary).fill_null(-1).to_numpy().astype(np.int64)
        group = group * len(encoded.dictionary) + encoded.indices.to_numpy()
        wanted = np.where((wanted < 0) | (codes < 0), -1, wanted * len(encoded.dictionary) + codes)
    return group, wanted


def _seconds(table: pa.Table, name: str) -> np.ndarray:
    values = table[name].to_numpy()
    if not np.isfinite(values).all():
        raise ValueError(f"{name} of row {int(np.argmin(np.isfinite(values)))} is {values[~np.isfinite(values)][0]}")
    return values
