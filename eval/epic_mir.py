"""EPIC-KITCHENS-100 multi-instance retrieval: mAP and nDCG, video to text (V2T), text to video (T2V), and their mean.

    python eval/epic_mir.py --checkpoint C --shards ROOT [--config F] [key=value …]

Similarities are reported as plain cosine and after the released dual softmax. `compat.dual_softmax` says which of
the two the queries on the page are of; `compat.channel_order=bgr` reproduces the released input. See docs/eval.md.

Shapes in names: V videos that could be embedded, S sentences, N texts of all rows, Q queries, M items to rank.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from eval.benchmark import Benchmark, BenchmarkOutput, Context, main
from eval.metrics.bootstrap import interval_of_average, interval_of_mean
from eval.metrics.relevancy import Classes, Relevancy
from eval.metrics.retrieval import Direction, Retrieval, score_retrieval
from eval.metrics.similarity import cosine, dual_softmax
from eval.results import Item, Missing, Option, Score
from shards.companions import EpicLabels, EpicSentence, EpicVideo, read_companion

_SHOWN = 5  # items of a query that the page shows, those ranked first
_BLOCK = 256  # queries at a time
_RANKS = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)
DUAL = ", dual softmax"


def evaluate(context: Context) -> BenchmarkOutput | None:
    """Rank sentences for each video and videos for each sentence."""
    labels = read_companion(context.source, context.set_name, context.split, EpicLabels)
    embedded = context.embed(keys=[video.key for video in labels.videos])
    texts = context.texts([*(row.text for row in labels.videos), *(row.text for row in labels.sentences)])
    if embedded is None or texts is None:
        return None
    index = embedded.index
    videos = [video for video in labels.videos if video.key in index]
    missing = [
        Missing(item=video.narration_id, reason=f"{video.key}: {context.why(embedded, video.key)}")
        for video in labels.videos
        if video.key not in index
    ]
    if not videos or not labels.sentences:
        why = f": {missing[0].reason}" if missing else ""
        raise ValueError(f"{len(videos)} of {len(labels.videos)} videos and {len(labels.sentences)} sentences{why}")
    relevancy = Relevancy(_classes(videos), _classes(labels.sentences))
    video_VD = embedded.vectors[[index[video.key] for video in videos]]
    rows = _all_rows(labels)
    number = {row.narration_id: place for place, row in enumerate(rows)}
    picked = np.array([number[sentence.narration_id] for sentence in labels.sentences])
    similarities = {
        "": cosine(video_VD, texts.of([sentence.text for sentence in labels.sentences])),
        DUAL: dual_softmax(texts.of([row.text for row in rows]), video_VD, picked),
    }
    found = {name: score_retrieval(sim_VS, relevancy) for name, sim_VS in similarities.items()}
    shown = DUAL if context.config.compat.dual_softmax else ""
    items, curves = _queries(similarities[shown], relevancy, found[shown], videos, labels.sentences)
    return BenchmarkOutput(
        scores=[score for name, result in found.items() for score in _scores(context, result, name, labels)],
        items=items,
        missing=missing,
        of=len(labels.videos),
        curves=curves,
    )


def _classes(rows: Sequence[EpicVideo] | Sequence[EpicSentence]) -> Classes:
    return Classes.of([row.verb_class for row in rows], [row.noun_classes for row in rows])


def _all_rows(labels: EpicLabels) -> list[EpicVideo | EpicSentence]:
    """Return the texts over which the released test normalised: every video's, and sentences that are of none."""
    known = {video.narration_id for video in labels.videos}
    return [*labels.videos, *(sentence for sentence in labels.sentences if sentence.narration_id not in known)]


def _scores(context: Context, found: Retrieval, suffix: str, labels: EpicLabels) -> Iterator[Score]:
    """Yield the means of both directions, then each direction's."""
    v2t, t2v = found.video_to_text, found.text_to_video
    seed, resamples = context.config.seed, context.config.resamples
    asked = len(labels.videos) + len(labels.sentences)
    measures = (("mAP", "ap_Q"), ("nDCG", "ndcg_Q"), ("mAP of plain precision", "strict_ap_Q"))
    for measure, column in measures:
        parts = [_finite(getattr(direction, column)) for direction in (v2t, t2v)]
        if min(map(len, parts)) == 0:
            continue
        interval = interval_of_average(parts, seed=seed, resamples=resamples)
        value = float(np.mean([part.mean() for part in parts]))
        yield context.score(
            "epic_mir",
            measure + suffix,
            value,
            interval,
            items=sum(map(len, parts)),
            of=asked,
            tied=v2t.tied + t2v.tied,
        )
    for measure, column in measures[:2]:
        for name, direction, of in (("V2T", v2t, len(labels.videos)), ("T2V", t2v, len(labels.sentences))):
            values = _finite(getattr(direction, column))
            if len(values):
                interval = interval_of_mean(values, seed=seed, resamples=resamples)
                yield context.score(
                    "epic_mir",
                    f"{name} {measure}{suffix}",
                    float(values.mean()),
                    interval,
                    items=len(values),
                    of=of,
                    tied=direction.tied,
                )


def _queries(
    sim_VS: np.ndarray,
    relevancy: Relevancy,
    found: Retrieval,
    videos: Sequence[EpicVideo],
    sentences: Sequence[EpicSentence],
) -> tuple[list[Item], dict[str, list[tuple[float, float]]]]:
    """Return every query with what was ranked first, and how often a relevant item is among the first k."""
    repeats = Counter(video.key for video in videos)
    video_ids = [v.key if repeats[v.key] == 1 else f"{v.key} ({v.narration_id})" for v in videos]
    video_options = [(video.key, video.text) for video in videos]
    sentence_options = [(sentence.narration_id, sentence.text) for sentence in sentences]
    items: list[Item] = []
    curves = {}
    for group, sim_QM, rows, direction, queries, options in (
        ("V2T", sim_VS, relevancy, found.video_to_text, list(zip(video_ids, videos, strict=True)), sentence_options),
        (
            "T2V",
            sim_VS.T,
            relevancy.T,
            found.text_to_video,
            [(sentence.narration_id, sentence) for sentence in sentences],
            video_options,
        ),
    ):
        ranks = []
        for start in range(0, len(queries), _BLOCK):
            relevant_QM = rows.rows(start, start + _BLOCK) == 1
            for row, is_relevant_M in enumerate(relevant_QM, start):
                if np.isfinite(direction.ap_Q[row]):
                    name, query = queries[row]
                    found_item, rank = _query(
                        group, name, query.text, sim_QM[row], is_relevant_M, direction, row, options
                    )
                    items.append(found_item)
                    ranks.append(rank)
        if ranks:
            curves[f"{group}: a right one among the first k, % by k"] = [
                (float(k), 100 * float(np.mean(np.array(ranks) <= k))) for k in _RANKS if k <= len(options)
            ]
    return items, curves


def _query(
    group: str,
    name: str,
    text: str,
    sim_M: np.ndarray,
    is_relevant_M: np.ndarray,
    direction: Direction,
    row: int,
    options: Sequence[tuple[str, str]],
) -> tuple[Item, int]:
    """Return a query with its first options and the first right one, and the rank of that one, equals before it."""
    right = int(np.argmax(np.where(is_relevant_M, sim_M, -np.inf)))
    rank = int((sim_M > sim_M[right]).sum() + ((sim_M == sim_M[right]) & ~is_relevant_M).sum()) + 1
    first = np.argpartition(-sim_M, min(_SHOWN, len(sim_M)) - 1)[:_SHOWN]
    first = first[np.argsort(-sim_M[first], kind="stable")]
    chosen = right if rank == 1 else int(first[0])
    shown = dict.fromkeys([chosen, *first.tolist(), right])
    item = Item(
        id=name,
        group=group,
        text=text,
        score=float(direction.ap_Q[row]),
        answer=options[right][0],
        predicted=options[chosen][0],
        options=[Option(key=options[m][0], text=options[m][1], score=float(sim_M[m])) for m in shown],
        note=f"{int(is_relevant_M.sum())} fully relevant of {len(options)}, the first at rank {rank}; "
        f"nDCG {direction.ndcg_Q[row]:.1f}",
    )
    return item, rank


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


BENCHMARK = Benchmark(
    name="epic_mir",
    set_name="epic_mir",
    split="test",
    evaluate=evaluate,
    title="EPIC-KITCHENS-100 multi-instance retrieval: mAP and nDCG in both directions",
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
