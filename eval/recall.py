# PYTHON_ARGCOMPLETE_OK
"""Recall: how often a caption finds its clip among all clips, and a clip its caption; any set with captions.

    python eval/recall.py --checkpoint C --shards ROOT [--set clips] [--split val] [--config F] [key=value …]

R@1, R@5, R@10 and the median rank, from text to video and from video to text. Captions with the same words count as
one: each of their clips is a right answer. Intervals are over videos, as the captions of a video are alike. Samples
without a caption are left out, and of more than `recall_samples` that many are drawn, by a hash of their keys.

Shapes in names: N samples, T distinct captions, Q queries, D width of the shared space.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.benchmark import Benchmark, BenchmarkError, BenchmarkOutput, Context, Embeddings, Inputs
from eval.command import main
from eval.metrics.bootstrap import interval_by_cluster
from eval.metrics.mcq import keyed_rng
from eval.metrics.recall import KS, FirstHits, first_hits
from eval.metrics.similarity import cosine
from eval.results import Item, Missing, Option, Score
from shards.dataset import read_rows
from shards.schema import set_spec
from shards.sources import Source

NAME = "recall"
TEXT_TO_VIDEO, VIDEO_TO_TEXT = "text → video", "video → text"
_SHOWN = 5  # best ranked items that a report shows of a query


@dataclass(frozen=True, kw_only=True)
class Captioned:
    """A sample with a caption."""

    key: str
    video_uid: str
    text: str

    @property
    def words(self) -> str:
        """The caption without regard to case and spaces, by which captions are the same."""
        return " ".join(self.text.casefold().split())


@dataclass(frozen=True, kw_only=True, eq=False)
class Recall:
    """Both directions of N samples; a query's row is its sample's."""

    samples: list[Captioned]
    texts: list[str]  # T, one of each distinct caption
    text_N: np.ndarray  # of each sample, the row of its caption in `texts`
    sim_TN: np.ndarray  # similarity of each caption with each sample
    to_video: FirstHits
    to_text: FirstHits


def read_captioned(source: Source, set_name: str, split: str, *, limit: int | None, seed: int) -> list[Captioned]:
    """Return the samples of a split with captions, without withdrawn videos; at most `limit`, drawn by their keys.

    The order is that of the shards.
    """
    denied = source.dataset.denylist
    found = []
    for shard in source.dataset.split(set_name, split).shards:
        for row in read_rows(source.parquet(shard), ["key", "video_uid", "text"]).to_pylist():
            if row["video_uid"] not in denied and row["text"].strip():
                found.append(Captioned(**row))
    if limit is not None and len(found) > limit:
        drawn = sorted(found, key=lambda s: int(keyed_rng("recall", seed, s.key).integers(2**63)))[:limit]
        kept = {sample.key for sample in drawn}
        found = [sample for sample in found if sample.key in kept]
    return found


def retrieve(samples: Sequence[Captioned], text_ND: np.ndarray, video_ND: np.ndarray) -> Recall:
    """Return both directions; row i of `text_ND` is the embedding of the caption of sample i, of `video_ND` its own."""
    rows: dict[str, int] = {}
    text_N = np.array([rows.setdefault(sample.words, len(rows)) for sample in samples])
    first_T = np.unique(text_N, return_index=True)[1]
    sim_TN = cosine(text_ND[first_T], video_ND)
    to_video = first_hits(
        lambda start, stop: sim_TN[text_N[start:stop]],
        lambda start, stop: text_N[start:stop, None] == text_N[None],
        queries=len(samples),
    )
    to_text = first_hits(
        lambda start, stop: sim_TN.T[start:stop],
        lambda start, stop: text_N[start:stop, None] == np.arange(len(rows))[None],
        queries=len(samples),
    )
    texts = [samples[row].text for row in first_T.tolist()]
    return Recall(samples=list(samples), texts=texts, text_N=text_N, sim_TN=sim_TN, to_video=to_video, to_text=to_text)


def read(context: Context) -> list[Captioned]:
    """Return the samples that are queries and candidates; raise `BenchmarkError` where none has a caption."""
    config = context.config
    samples = read_captioned(
        context.source, context.set_name, context.split, limit=config.recall_samples, seed=config.seed
    )
    if not samples:
        raise BenchmarkError(
            f"{context.set_name}/{context.split}: no sample has a caption, so there is nothing to retrieve by text"
        )
    return samples


def inputs(context: Context, samples: list[Captioned]) -> Inputs:
    """Return all samples and captions."""
    return Inputs(texts=[sample.text for sample in samples], keys=[sample.key for sample in samples])


def score(context: Context, samples: list[Captioned], embeddings: Embeddings) -> BenchmarkOutput:
    """Score both directions over the samples that could be embedded."""
    embedded = [sample for sample in samples if sample.key in embeddings.samples.index]
    missing = [s.key for s in samples if s.key not in embeddings.samples.index]
    lost = [context.missing(embeddings.samples, key) for key in missing]
    if not embedded:
        raise BenchmarkError(f"{context.set_name}/{context.split}: no sample could be embedded ({lost[0].reason})")
    vectors = embeddings.samples.vectors
    video = context.aggregate(vectors) if set_spec(context.set_name).is_long else vectors
    video_ND = video[[embeddings.samples.index[sample.key] for sample in embedded]]
    found = retrieve(embedded, embeddings.texts.of([sample.text for sample in embedded]), video_ND)
    scores = [
        *_scores(context, TEXT_TO_VIDEO, found.to_video, embedded, of=len(samples)),
        *_scores(context, VIDEO_TO_TEXT, found.to_text, embedded, of=len(samples)),
    ]
    return BenchmarkOutput(scores=scores, items=_items(found), missing=_both_ways(lost), of=2 * len(samples))


def _both_ways(lost: Sequence[Missing]) -> list[Missing]:
    return [
        Missing(item=f"{each.item} ({direction})", reason=each.reason)
        for direction in (TEXT_TO_VIDEO, VIDEO_TO_TEXT)
        for each in lost
    ]


def _scores(context: Context, direction: str, hits: FirstHits, samples: Sequence[Captioned], *, of: int) -> list[Score]:
    """Return R@k and the median rank of a direction, with intervals over videos."""
    videos = [sample.video_uid for sample in samples]
    seed, resamples = context.config.seed, context.config.resamples
    tied = int(hits.is_tied_Q.sum())
    scores = []
    for k in KS:
        values_Q = hits.recall(k)
        scores.append(
            context.score(
                NAME,
                f"{direction} R@{k}",
                float(values_Q.mean()),
                interval_by_cluster(values_Q, videos, seed=seed, resamples=resamples),
                items=len(samples),
                of=of,
                chance=hits.chance(k),
                tied=tied,
            )
        )
    ranks_Q = hits.ranks()
    interval = interval_by_cluster(ranks_Q, videos, statistic="median", seed=seed, resamples=resamples)
    scores.append(
        Score(
            name=f"{direction} median rank",
            value=float(np.median(ranks_Q)),
            low=interval.low if interval else None,
            high=interval.high if interval else None,
            items=len(samples),
            of=of,
            tied=tied,
            unit="rank",
        )
    )
    return scores


def _items(found: Recall) -> list[Item]:
    """Return every query of both directions with its best ranked options and the right one."""
    items = []
    to_video, to_text = found.to_video.ranks(), found.to_text.ranks()
    recall = {TEXT_TO_VIDEO: found.to_video.recall(1), VIDEO_TO_TEXT: found.to_text.recall(1)}
    for row, sample in enumerate(found.samples):
        text = int(found.text_N[row])
        sim_N, sim_T = found.sim_TN[text], found.sim_TN[:, row]
        right = np.flatnonzero(found.text_N == text)
        best = int(right[sim_N[right].argmax()])
        videos = [
            Option(key=found.samples[i].key, text=found.samples[i].text, score=float(sim_N[i]))
            for i in _top(sim_N, best)
        ]
        texts = [Option(key=found.texts[i], text=found.texts[i], score=float(sim_T[i])) for i in _top(sim_T, text)]
        answers = (
            (
                TEXT_TO_VIDEO,
                f"{sample.key} ({TEXT_TO_VIDEO})",
                found.samples[best].key,
                videos,
                to_video[row],
                len(sim_N),
            ),
            (VIDEO_TO_TEXT, sample.key, found.texts[text], texts, to_text[row], len(sim_T)),
        )
        for direction, name, answer, options, rank, of in answers:
            value = float(recall[direction][row])
            predicted = answer if value == 100 else next((o.key for o in options if o.key != answer), answer)
            items.append(
                Item(
                    id=name,
                    group=direction,
                    text=sample.text,
                    score=value,
                    answer=answer,
                    predicted=predicted,
                    options=options,
                    note=f"rank {rank:g} of {of}",
                )
            )
    return items


def _top(sim_M: np.ndarray, right: int) -> list[int]:
    """Return the rows of the highest similarities, and the right one."""
    some = np.argpartition(-sim_M, min(_SHOWN, len(sim_M)) - 1)[:_SHOWN]
    return list(dict.fromkeys([*some[np.argsort(-sim_M[some], kind="stable")].tolist(), right]))


def recall_of(set_name: str, split: str = "val", name: str = NAME) -> Benchmark[list[Captioned]]:
    """Return the benchmark over a set's split."""
    return Benchmark(
        name=name,
        set_name=set_name,
        split=split,
        title="Recall at 1, 5 and 10, and the median rank, from text to video and from video to text",
        read=read,
        inputs=inputs,
        score=score,
    )


BENCHMARK = recall_of("clips")

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
