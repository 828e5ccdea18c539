"""Assigns to each summary the narrations inside its time span, with one interval join over all videos."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocessing.annotations.merge import sort_by_start

# s; times are parsed from decimal text and summed, so bounds that should be equal may differ in the last bits.
EPSILON = 1e-6
_PAIRS = 1 << 22  # candidate pairs compared at a time: limits memory, does not affect the result


@dataclass(frozen=True, kw_only=True)
class Hierarchy:
    """The narrations of each summary, in compressed sparse row (CSR) form.

    Summary i has the narrations `rows[offsets[i]:offsets[i + 1]]`: row numbers of the joined narrations table in time
    order (clip_start, then key). The range of a summary without narrations is empty.
    """

    offsets: np.ndarray  # (S + 1,) int64
    rows: np.ndarray  # int64

    def __len__(self) -> int:
        """Return the number of summaries."""
        return len(self.offsets) - 1

    @property
    def counts(self) -> np.ndarray:
        """The number of narrations of each summary, (S,) int64."""
        return np.diff(self.offsets)

    def narrations_of(self, summary: int) -> np.ndarray:
        """Return the narration rows of the summary in row `summary`, in time order, as a view.

        Raises `IndexError` for a row that does not exist.
        """
        if not 0 <= summary < len(self):
            raise IndexError(f"summary {summary} is out of range for {len(self)} summaries")
        return self.rows[self.offsets[summary] : self.offsets[summary + 1]]


def join(narrations: pa.Table, summaries: pa.Table, *, match_pass: bool) -> Hierarchy:
    """Return, for each row of `summaries`, the rows of `narrations` of the same video that lie within its span.

    Within means `clip_start ≥ start − EPSILON` and `clip_end ≤ end + EPSILON`. With `match_pass`, the annotator pass
    must match as well. Rows are identified by their position, not by their text, so equal texts do not collide. Both
    tables may be in any order; the columns used are video_uid, narration_source, clip_start, clip_end (s) and key.

    The candidates of a summary are one range of the narrations sorted by (video, start). A single vectorised binary
    search finds the ranges of all summaries; the ends of the candidates are compared afterwards. The time is
    O((N + S) log N + candidates). Raises `ValueError` where a time is not finite.
    """
    group, summary_group = _groups(narrations, summaries, match_pass)
    start, end = _seconds(narrations, "clip_start"), _seconds(narrations, "clip_end")
    order = sort_by_start(group, start, narrations["key"])
    # Starts are replaced by their ranks, so that (group, rank) fits one integer and one search serves all groups.
    distinct = np.unique(start)
    width = len(distinct) + 1
    code = group[order] * width + np.searchsorted(distinct, start[order])
    first, last = _seconds(summaries, "clip_start") - EPSILON, _seconds(summaries, "clip_end") + EPSILON
    begin = np.searchsorted(code, summary_group * width + np.searchsorted(distinct, first, side="left"))
    stop = np.searchsorted(code, summary_group * width + np.searchsorted(distinct, last, side="right"))
    stop = np.maximum(begin, np.where(summary_group < 0, begin, stop))
    return _inside(begin, stop, end[order], last, order)


def _inside(begin: np.ndarray, stop: np.ndarray, end: np.ndarray, last: np.ndarray, order: np.ndarray) -> Hierarchy:
    """Return the candidates [begin, stop) of each summary whose `end` is not after the summary's `last` (s)."""
    candidates = stop - begin
    total = np.concatenate([[0], np.cumsum(candidates)])
    counts = np.zeros(len(begin), np.int64)
    rows = [np.empty(0, np.int64)]
    at = 0
    while at < len(begin):
        # As many whole summaries as fit into one batch of pairs, but at least one.
        to = max(at + 1, int(np.searchsorted(total, total[at] + _PAIRS, side="right")) - 1)
        summary = np.repeat(np.arange(at, to), candidates[at:to])
        position = np.arange(total[at], total[to]) - (total[:-1] - begin)[summary]
        inside = end[position] <= last[summary]
        counts[at:to] = np.bincount(summary[inside] - at, minlength=to - at)
        rows.append(order[position[inside]])
        at = to
    return Hierarchy(offsets=np.concatenate([[0], np.cumsum(counts)]), rows=np.concatenate(rows))


def _groups(narrations: pa.Table, summaries: pa.Table, match_pass: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the group number (video, or video and pass) of each narration and of each summary.

    A summary whose group has no narration gets −1.
    """
    group = np.zeros(narrations.num_rows, np.int64)
    summary_group = np.zeros(summaries.num_rows, np.int64)
    for name in ("video_uid", "narration_source") if match_pass else ("video_uid",):
        encoded = narrations[name].combine_chunks().dictionary_encode()
        codes = pc.index_in(summaries[name], encoded.dictionary).fill_null(-1).to_numpy().astype(np.int64)
        group = group * len(encoded.dictionary) + encoded.indices.to_numpy()
        is_absent = (summary_group < 0) | (codes < 0)
        summary_group = np.where(is_absent, -1, summary_group * len(encoded.dictionary) + codes)
    return group, summary_group


def _seconds(table: pa.Table, name: str) -> np.ndarray:
    values: np.ndarray = table[name].to_numpy()
    is_finite = np.isfinite(values)
    if not is_finite.all():
        row = int(np.argmin(is_finite))
        raise ValueError(f"{name} of row {row} is {values[row]}; a finite time in seconds is required")
    return values
