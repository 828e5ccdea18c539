"""Questions that the pages ask of a catalog: videos by filter, losses by reason, distributions.

Pages are addressed by the last row that the former one showed, never by a number of rows to skip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shards.search.catalog import Catalog, match_expression

SORTS = {"name": "by name", "longest": "longest first", "fullest": "most samples first"}
_ORDER = {
    "name": ("v.uid", "v.uid > ?", "v.uid"),
    "longest": ("v.seconds", "(v.seconds, v.id) < (?, ?)", "v.seconds DESC, v.id DESC"),
    "fullest": ("v.samples", "(v.samples, v.id) < (?, ?)", "v.samples DESC, v.id DESC"),
}
_VIDEO = "v.id, v.uid, v.seconds, v.samples, v.lost, v.status, v.reason, v.detail"


@dataclass(frozen=True, kw_only=True)
class Video:
    """A source video."""

    id: int
    uid: str
    seconds: float
    samples: int
    lost: int  # annotated items of it that are not packed
    status: str  # of its own row in the ledger
    reason: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class VideoFilter:
    """Which videos are wanted; what is empty does not matter."""

    text: str = ""  # words in captions or in the identifier
    tags: tuple[tuple[str, int], ...] = ()  # (field, class), all of them
    scenario: str = ""
    shortest: float | None = None  # s
    longest: float | None = None
    split: int = 0  # number of a split that it must have samples in
    sort: str = "name"


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A row of the ledger that is not packed."""

    id: int
    set_name: str
    item: str
    video_uid: str
    status: str
    reason: str
    detail: str


def find_videos(catalog: Catalog, wanted: VideoFilter, *, after: Sequence[str], limit: int) -> tuple[list[Video], int]:
    """Return a page of videos and how many there are in all; `after` is the `cursor` of the last one before."""
    conditions, parameters = _conditions(wanted)
    where = " AND ".join(conditions) or "1"
    ((total,),) = catalog.rows(f"SELECT count(*) FROM videos v WHERE {where}", parameters)  # noqa: S608
    _, comparison, order = _ORDER[wanted.sort]
    if after and len(after) == comparison.count("?"):
        values = [after[0]] if wanted.sort == "name" else [float(after[0]), int(after[1])]
        where, parameters = f"{where} AND {comparison}", [*parameters, *values]
    rows = catalog.rows(
        f"SELECT {_VIDEO} FROM videos v WHERE {where} ORDER BY {order} LIMIT ?",  # noqa: S608
        [*parameters, limit],
    )
    return [_video(row) for row in rows], int(total)


def cursor(video: Video, sort: str) -> list[str]:
    """Return what addresses the page after a video."""
    return {
        "name": [video.uid],
        "longest": [repr(video.seconds), str(video.id)],
        "fullest": [str(video.samples), str(video.id)],
    }[sort]


def _conditions(wanted: VideoFilter) -> tuple[list[str], list[object]]:
    conditions: list[str] = []
    parameters: list[object] = []

    def need(condition: str, *values: object) -> None:
        conditions.append(condition)
        parameters.extend(values)

    for word in wanted.text.split():  # a word may be several of FTS5's, which this index cannot look up as a phrase
        expressions = [match_expression(part) for part in _parts(word)]
        for expression in filter(None, expressions):
            need("v.id IN (SELECT rowid FROM video_words WHERE video_words MATCH ?)", expression)
    for kind, tag in wanted.tags:
        need("EXISTS (SELECT 1 FROM video_tags t WHERE t.kind = ? AND t.tag = ? AND t.video = v.id)", kind, tag)
    if wanted.scenario:
        need("EXISTS (SELECT 1 FROM video_scenarios c WHERE c.scenario = ? AND c.uid = v.uid)", wanted.scenario)
    if wanted.shortest is not None:
        need("v.seconds >= ?", wanted.shortest)
    if wanted.longest is not None:
        need("v.seconds <= ?", wanted.longest)
    if wanted.split:
        need("EXISTS (SELECT 1 FROM video_splits p WHERE p.split = ? AND p.video = v.id)", wanted.split)
    return conditions, parameters


def _parts(word: str) -> list[str]:
    """Return the runs of letters and digits in a word; the last one keeps the `*` that the word ends in."""
    parts = "".join(c if c.isalnum() else " " for c in word).split()
    return [*parts[:-1], parts[-1] + "*"] if parts and word.endswith("*") else parts


def find_video(catalog: Catalog, uid: str) -> Video | None:
    """Return a video; None if there is no such."""
    rows = catalog.rows(f"SELECT {_VIDEO} FROM videos v WHERE v.uid = ?", (uid,))  # noqa: S608
    return _video(rows[0]) if rows else None


def first_key(catalog: Catalog, video: int) -> str:
    """Return the key of a video's first sample; empty without one."""
    rows = catalog.rows("SELECT key FROM samples WHERE video = ? ORDER BY start LIMIT 1", (video,))
    return str(rows[0][0]) if rows else ""


def splits_of(catalog: Catalog, video: int) -> list[tuple[str, int]]:
    """Return the names of the splits that a video has samples in, and how many."""
    names = {split.id: split.name for split in catalog.splits}
    rows = catalog.rows("SELECT split, samples FROM video_splits WHERE video = ? ORDER BY split", (video,))
    return [(names[split], samples) for split, samples in rows]


def tags_of(catalog: Catalog, video: int, *, limit: int = 24) -> list[tuple[str, int, int]]:
    """Return (field, class, samples) of a video's commonest classes."""
    rows = catalog.rows(
        "SELECT kind, tag, samples FROM video_tags WHERE video = ? ORDER BY samples DESC, kind, tag LIMIT ?",
        (video, limit),
    )
    return [(kind, tag, samples) for kind, tag, samples in rows]


def scenarios_of(catalog: Catalog, uid: str) -> list[str]:
    """Return the scenarios of a video."""
    return [row[0] for row in catalog.rows("SELECT scenario FROM video_scenarios WHERE uid = ? ORDER BY 1", (uid,))]


def scenarios(catalog: Catalog) -> list[tuple[str, int]]:
    """Return the scenarios and the number of videos of each, as far as they are known."""
    return [
        (name, n) for name, n in catalog.rows("SELECT scenario, count(*) FROM video_scenarios GROUP BY 1 ORDER BY 1")
    ]


def tag_counts(catalog: Catalog) -> list[tuple[str, int, int, int]]:
    """Return (field, class, samples, videos) of all classes, the commonest first."""
    rows = catalog.rows("SELECT kind, tag, samples, videos FROM tag_counts ORDER BY samples DESC, kind, tag")
    return [(kind, tag, samples, videos) for kind, tag, samples, videos in rows]


def spans_of(catalog: Catalog, video: int) -> list[tuple[float, float, str, str]]:
    """Return (start, end, status, reason) of the spans of a video, s."""
    rows = catalog.rows("SELECT start, stop, status, reason FROM spans WHERE video = ? ORDER BY start", (video,))
    return [(start, stop, status, reason) for start, stop, status, reason in rows]


def loss_reasons(catalog: Catalog) -> list[tuple[str, str, str, int]]:
    """Return (set, status, reason, items) of everything that is not packed, the commonest first."""
    rows = catalog.rows("SELECT set_name, status, reason, items FROM loss_reasons ORDER BY items DESC, 1, 2, 3")
    return [(set_name, status, reason, items) for set_name, status, reason, items in rows]


def losses(catalog: Catalog, set_name: str, status: str, reason: str, *, after: int, limit: int) -> list[Loss]:
    """Return a page of the items with one reason; `after` is the number of the last one before."""
    return _losses(
        catalog,
        "set_name = ? AND status = ? AND reason = ? AND id > ? ORDER BY id LIMIT ?",
        (set_name, status, reason, after, limit),
    )


def losses_of(catalog: Catalog, uid: str, *, limit: int = 200) -> list[Loss]:
    """Return the items of a video that are not packed."""
    return _losses(catalog, "video_uid = ? ORDER BY id LIMIT ?", (uid, limit))


def histograms(catalog: Catalog, name: str) -> dict[str, list[tuple[float, float, int]]]:
    """Return split → (low, high, count) of the intervals of a distribution: seconds, words or samples (per video)."""
    names = {split.id: split.name for split in catalog.splits}
    found: dict[str, list[tuple[float, float, int]]] = {}
    for split, low, high, count in catalog.rows(
        "SELECT split, low, high, count FROM histograms WHERE name = ? ORDER BY split, low", (name,)
    ):
        found.setdefault(names[split], []).append((low, high, count))
    return found


def words(catalog: Catalog, *, limit: int = 60) -> list[tuple[str, int]]:
    """Return the commonest words and the number of captions that have them."""
    return [
        (word, n)
        for word, n in catalog.rows("SELECT word, samples FROM words ORDER BY samples DESC, word LIMIT ?", (limit,))
    ]


def totals(catalog: Catalog) -> tuple[int, int]:
    """Return the number of videos and of items that are not packed."""
    ((videos,),) = catalog.rows("SELECT count(*) FROM videos")
    ((lost,),) = catalog.rows("SELECT coalesce(sum(items), 0) FROM loss_reasons WHERE set_name != 'videos'")
    return int(videos), int(lost)


def _losses(catalog: Catalog, condition: str, parameters: Sequence[object]) -> list[Loss]:
    names = Loss.__dataclass_fields__
    statement = f"SELECT id, set_name, item, video_uid, status, reason, detail FROM losses WHERE {condition}"  # noqa: S608
    return [Loss(**dict(zip(names, row, strict=True))) for row in catalog.rows(statement, parameters)]


def _video(row: Sequence[object]) -> Video:
    return Video(**dict(zip(Video.__dataclass_fields__, row, strict=True)))  # type: ignore[arg-type]
