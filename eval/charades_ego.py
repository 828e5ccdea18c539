# PYTHON_ARGCOMPLETE_OK
"""Charades-Ego: which of 157 actions a whole video shows, by similarity with the actions' sentences; mean AP.

    python eval/charades_ego.py --checkpoint C --shards ROOT [--config F] [key=value …]

Shapes in names: N videos, C classes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from eval.benchmark import Benchmark, BenchmarkError, BenchmarkOutput, Context, Embeddings, Inputs
from eval.command import main
from eval.labelled import match_videos
from eval.metrics.bootstrap import bootstrap
from eval.metrics.classification import ClassAP, class_average_precision, mean_ap_of_counts, multi_hot
from eval.metrics.similarity import cosine
from eval.results import Item, Option
from shards.companions import CharadesLabels, CharadesVideo, read_companion

_VIDEOS_SHOWN = 5  # the top-ranked ones of a class


def read(context: Context) -> CharadesLabels:
    """Return the labels; raise `CompanionError` if they are absent or malformed."""
    return read_companion(context.source, context.set_name, context.split, CharadesLabels)


def inputs(context: Context, labels: CharadesLabels) -> Inputs:
    """Return the classes' sentences and the labelled videos."""
    return Inputs(texts=labels.classes, keys=[video.key for video in labels.videos])


def score(context: Context, labels: CharadesLabels, embeddings: Embeddings) -> BenchmarkOutput:
    """Rank all videos for each class."""
    matched = match_videos(context, labels.videos, embeddings.samples)
    videos = matched.videos
    sim_NC = cosine(matched.vectors, embeddings.texts.of(labels.classes))
    is_label_NC = multi_hot([video.actions for video in videos], len(labels.classes))
    ap = class_average_precision(sim_NC, is_label_NC)
    if not ap.scored:
        raise BenchmarkError(f"{context.set_name}: none of {len(videos)} videos shows any of the classes")
    interval = bootstrap(
        mean_ap_of_counts(sim_NC, is_label_NC),
        len(videos),
        seed=context.config.seed,
        resamples=context.config.resamples,
    )
    # Where all scores tie, the AP is its expected value over random rankings.
    chance = class_average_precision(np.zeros_like(sim_NC), is_label_NC).map
    best_first = np.sort(ap.ap_C[np.isfinite(ap.ap_C)])[::-1]
    return BenchmarkOutput(
        scores=[
            context.score(
                "charades_ego",
                "mAP",
                ap.map,
                interval,
                items=len(videos),
                of=len(labels.videos),
                chance=chance,
                tied=ap.tied,
            )
        ],
        items=_items(ap, sim_NC, is_label_NC, labels.classes, videos),
        missing=matched.missing,
        of=len(labels.videos),
        curves={"AP by class": [(float(rank), float(value)) for rank, value in enumerate(best_first, 1)]},
        curve_axes={"AP by class": ("classes, best first", "average precision (%)")},
    )


def _items(
    ap: ClassAP, sim_NC: np.ndarray, is_label_NC: np.ndarray, classes: Sequence[str], videos: Sequence[CharadesVideo]
) -> list[Item]:
    """Return the classes that any video shows, each with its top-ranked videos and the first correct one."""
    items = []
    is_labelled_N = is_label_NC.any(axis=1)
    for number in np.flatnonzero(np.isfinite(ap.ap_C)).tolist():
        ranked = np.argsort(np.where(is_labelled_N, -sim_NC[:, number], np.inf), kind="stable")
        correct = int(ranked[np.argmax(is_label_NC[ranked, number])])
        shown = dict.fromkeys([*ranked[:_VIDEOS_SHOWN].tolist(), correct])
        options = [
            Option(
                key=videos[row].key,
                text="; ".join(classes[action] for action in videos[row].actions),
                score=float(sim_NC[row, number]),
            )
            for row in shown
        ]
        note = f"shown by {int(is_label_NC[:, number].sum())} of {len(videos)} videos"
        items.append(
            Item(
                id=f"c{number:03d}",
                group="class",
                text=classes[number],
                score=float(ap.ap_C[number]),
                answer=videos[correct].key,
                predicted=videos[int(ranked[0])].key,
                options=options,
                note=f"{note}; ties affect the AP" if ap.tied_C[number] else note,
            )
        )
    return items


BENCHMARK = Benchmark(
    name="charades_ego",
    set_name="charades_ego",
    split="test",
    title="Charades-Ego: actions of whole videos, mean AP over classes",
    read=read,
    inputs=inputs,
    score=score,
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
