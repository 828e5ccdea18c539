# PYTHON_ARGCOMPLETE_OK
"""EPIC-KITCHENS-100 multi-instance retrieval: mAP and nDCG, video to text (V2T), text to video (T2V), and their mean.

    python eval/epic_mir.py --checkpoint C --shards ROOT [--config F] [key=value …]

Scores are reported for plain cosine similarities and for the released dual softmax. `compat.dual_softmax` selects
those of the queries in the report; `compat.channel_order=bgr` reproduces the released input. See docs/eval.md.

Shapes in names: V embedded videos, S sentences, Q queries, M items to rank, D width of the shared space.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from eval.benchmark import Benchmark, BenchmarkError, BenchmarkOutput, Context, Embeddings, Inputs
from eval.command import main
from eval.embed import TextEmbeddings
from eval.labelled import match_videos
from eval.metrics.bootstrap import interval_of_average
from eval.metrics.retrieval import Direction, Retrieval, score_retrieval
from eval.metrics.similarity import cosine, dual_softmax
from eval.results import Item, Option, Score
from hiervl_train.relevancy import Classes, Relevancy
from shards.companions import EpicLabels, EpicSentence, EpicVideo, read_companion

NAME = "epic_mir"
DUAL = ", dual softmax"  # suffix of score names
_ITEMS_SHOWN = 5  # the top-ranked ones of a query
_QUERIES_PER_BLOCK = 256  # bounds memory
_CURVE_RANKS = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)
_MEASURES = (("mAP", "ap_Q"), ("nDCG", "ndcg_Q"), ("mAP of plain precision", "strict_ap_Q"))


def read(context: Context) -> EpicLabels:
    """Return the videos and sentences; raise `CompanionError` if they are absent or malformed."""
    return read_companion(context.source, context.set_name, context.split, EpicLabels)


def inputs(context: Context, labels: EpicLabels) -> Inputs:
    """Return the labelled videos and all texts: the dual softmax normalises over the videos' own sentences, too."""
    texts = [*(video.text for video in labels.videos), *(sentence.text for sentence in labels.sentences)]
    return Inputs(texts=texts, keys=[video.key for video in labels.videos])


def score(context: Context, labels: EpicLabels, embeddings: Embeddings) -> BenchmarkOutput:
    """Rank sentences for each video and videos for each sentence."""
    matched = match_videos(context, labels.videos, embeddings.samples)
    if not labels.sentences:
        raise BenchmarkError(f"{context.set_name}/{context.split}: the labels have no sentences")
    relevancy = Relevancy(_classes(matched.videos), _classes(labels.sentences))
    similarities = {
        "": cosine(matched.vectors, embeddings.texts.of([sentence.text for sentence in labels.sentences])),
        DUAL: _dual_softmax(matched.vectors, embeddings.texts, labels),
    }
    retrievals = {suffix: score_retrieval(sim_VS, relevancy) for suffix, sim_VS in similarities.items()}
    # Where all similarities tie, scores are their expected values over random rankings.
    chance = score_retrieval(np.zeros(relevancy.shape), relevancy)
    shown = DUAL if context.config.compat.dual_softmax else ""
    items: list[Item] = []
    curves = {}
    for queries in _queries(similarities[shown], relevancy, retrievals[shown], matched.videos, labels.sentences):
        own_items, ranks = _items(queries)
        items += own_items
        if ranks:
            curves[f"{queries.group}: queries with a relevant item among the first k"] = [
                (float(k), 100 * float(np.mean(np.array(ranks) <= k)))
                for k in _CURVE_RANKS
                if k <= len(queries.options)
            ]
    return BenchmarkOutput(
        scores=[
            entry for suffix, found in retrievals.items() for entry in _scores(context, found, suffix, labels, chance)
        ],
        items=items,
        missing=matched.missing,
        of=len(labels.videos),
        curves=curves,
        curve_axes=dict.fromkeys(curves, ("k", "queries (%)")),
    )


def _classes(rows: Sequence[EpicVideo] | Sequence[EpicSentence]) -> Classes:
    return Classes.of([row.verb_class for row in rows], [row.noun_classes for row in rows])


def _dual_softmax(video_VD: np.ndarray, texts: TextEmbeddings, labels: EpicLabels) -> np.ndarray:
    """Return the released similarities (V, S): normalised over every video's sentence and those of no video."""
    known = {video.narration_id for video in labels.videos}
    rows: list[EpicVideo | EpicSentence] = [
        *labels.videos,
        *(sentence for sentence in labels.sentences if sentence.narration_id not in known),
    ]
    row_of = {row.narration_id: number for number, row in enumerate(rows)}
    sentences_S = np.array([row_of[sentence.narration_id] for sentence in labels.sentences])
    return dual_softmax(texts.of([row.text for row in rows]), video_VD, sentences_S)


def _scores(context: Context, found: Retrieval, suffix: str, labels: EpicLabels, chance: Retrieval) -> Iterator[Score]:
    """Yield the means of both directions, then the scores of each direction; `chance` are those of tied scores."""
    directions = (
        ("V2T", found.video_to_text, chance.video_to_text, len(labels.videos)),
        ("T2V", found.text_to_video, chance.text_to_video, len(labels.sentences)),
    )
    for measure, column in _MEASURES:
        parts = [_finite(getattr(direction, column)) for _, direction, _, _ in directions]
        if min(map(len, parts)):
            yield context.score(
                NAME,
                measure + suffix,
                float(np.mean([part.mean() for part in parts])),
                interval_of_average(parts, seed=context.config.seed, resamples=context.config.resamples),
                items=sum(map(len, parts)),
                of=sum(of for _, _, _, of in directions),
                chance=float(np.mean([_finite(getattr(random, column)).mean() for _, _, random, _ in directions])),
                tied=sum(direction.tied for _, direction, _, _ in directions),
            )
    for measure, column in _MEASURES[:2]:
        for name, direction, random, of in directions:
            values = _finite(getattr(direction, column))
            if len(values):
                level = float(_finite(getattr(random, column)).mean())
                yield context.mean_score(
                    NAME, f"{name} {measure}{suffix}", values, of=of, chance=level, tied=direction.tied
                )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Queries:
    """The queries of one direction and the items that they rank."""

    group: str
    ids: Sequence[str]
    texts: Sequence[str]
    options: Sequence[tuple[str, str]]  # key and text of each item
    sim_QM: np.ndarray
    relevancy: Relevancy  # (Q, M)
    direction: Direction


def _queries(
    sim_VS: np.ndarray,
    relevancy: Relevancy,
    found: Retrieval,
    videos: Sequence[EpicVideo],
    sentences: Sequence[EpicSentence],
) -> Iterator[_Queries]:
    """Yield both directions. A video's query is identified by its key, which lets the report show the video."""
    uses = Counter(video.key for video in videos)
    yield _Queries(
        group="V2T",
        ids=[video.key if uses[video.key] == 1 else f"{video.key} ({video.narration_id})" for video in videos],
        texts=[video.text for video in videos],
        options=[(sentence.narration_id, sentence.text) for sentence in sentences],
        sim_QM=sim_VS,
        relevancy=relevancy,
        direction=found.video_to_text,
    )
    yield _Queries(
        group="T2V",
        ids=[sentence.narration_id for sentence in sentences],
        texts=[sentence.text for sentence in sentences],
        options=[(video.key, video.text) for video in videos],
        sim_QM=sim_VS.T,
        relevancy=relevancy.T,
        direction=found.text_to_video,
    )


def _items(queries: _Queries) -> tuple[list[Item], list[int]]:
    """Return the queries that have a relevant item, and the rank of the first relevant item of each."""
    items, ranks = [], []
    for start in range(0, len(queries.ids), _QUERIES_PER_BLOCK):
        is_relevant_QM = queries.relevancy.rows(start, start + _QUERIES_PER_BLOCK) == 1
        for row, is_relevant_M in enumerate(is_relevant_QM, start):
            if np.isfinite(queries.direction.ap_Q[row]):
                item, rank = _item(queries, row, is_relevant_M)
                items.append(item)
                ranks.append(rank)
    return items, ranks


def _item(queries: _Queries, row: int, is_relevant_M: np.ndarray) -> tuple[Item, int]:
    """Return a query with its top-ranked items and the first relevant one, and the rank of that one.

    Irrelevant items that tie with it count as ranked before it.
    """
    sim_M, options = queries.sim_QM[row], queries.options
    relevant = int(np.argmax(np.where(is_relevant_M, sim_M, -np.inf)))
    is_before_M = (sim_M > sim_M[relevant]) | ((sim_M == sim_M[relevant]) & ~is_relevant_M)
    rank = int(is_before_M.sum()) + 1
    top = np.argpartition(-sim_M, min(_ITEMS_SHOWN, len(sim_M)) - 1)[:_ITEMS_SHOWN]
    top = top[np.argsort(-sim_M[top], kind="stable")]
    predicted = relevant if rank == 1 else int(top[0])
    shown = dict.fromkeys([predicted, *top.tolist(), relevant])
    item = Item(
        id=queries.ids[row],
        group=queries.group,
        text=queries.texts[row],
        score=float(queries.direction.ap_Q[row]),
        answer=options[relevant][0],
        predicted=options[predicted][0],
        options=[Option(key=options[m][0], text=options[m][1], score=float(sim_M[m])) for m in shown],
        note=f"{int(is_relevant_M.sum())} fully relevant of {len(options)}, the first at rank {rank}; "
        f"nDCG {queries.direction.ndcg_Q[row]:.1f}",
    )
    return item, rank


def _finite(values_Q: np.ndarray) -> np.ndarray:
    finite: np.ndarray = values_Q[np.isfinite(values_Q)]
    return finite


BENCHMARK = Benchmark(
    name=NAME,
    set_name=NAME,
    split="test",
    title="EPIC-KITCHENS-100 multi-instance retrieval: mAP and nDCG in both directions",
    read=read,
    inputs=inputs,
    score=score,
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
