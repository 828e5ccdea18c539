"""Charades-Ego: which of 157 actions a whole video shows, by similarity with the actions' sentences; mean AP.

    python eval/charades_ego.py --checkpoint C --shards ROOT [--config F] [key=value …]

Shapes in names: N videos, C classes.
"""

from __future__ import annotations

import sys

import numpy as np

from eval.benchmark import Benchmark, BenchmarkOutput, Context, main
from eval.metrics.bootstrap import bootstrap
from eval.metrics.classification import ClassAP, class_average_precision, mean_ap_of_counts, multi_hot
from eval.metrics.similarity import cosine
from eval.results import Item, Missing, Option
from shards.companions import CharadesLabels, CharadesVideo, read_companion

_SHOWN = 5  # videos of a class that the page shows, those ranked first


def evaluate(context: Context) -> BenchmarkOutput | None:
    """Rank all videos for each class."""
    labels = read_companion(context.source, context.set_name, context.split, CharadesLabels)
    embedded = context.embed(keys=[video.key for video in labels.videos])
    texts = context.texts(labels.classes)
    if embedded is None or texts is None:
        return None
    index = embedded.index
    videos = [video for video in labels.videos if video.key in index]
    missing = [
        Missing(item=video.key, reason=context.why(embedded, video.key))
        for video in labels.videos
        if video.key not in index
    ]
    if not videos:
        raise ValueError(f"none of the {len(labels.videos)} videos could be embedded: {missing[0].reason}")
    scores_NC = cosine(embedded.vectors[[index[video.key] for video in videos]], texts.of(labels.classes))
    is_label_NC = multi_hot([video.actions for video in videos], len(labels.classes))
    found = class_average_precision(scores_NC, is_label_NC)
    if not found.scored:
        raise ValueError(f"none of the {len(videos)} videos shows any of the classes")
    interval = bootstrap(
        mean_ap_of_counts(scores_NC, is_label_NC),
        len(videos),
        seed=context.config.seed,
        resamples=context.config.resamples,
    )
    score = context.score(
        "charades_ego", "mAP", found.map, interval, items=len(videos), of=len(labels.videos), tied=found.tied
    )
    best_first = np.sort(found.ap_C[np.isfinite(found.ap_C)])[::-1]
    return BenchmarkOutput(
        scores=[score],
        items=_items(found, scores_NC, is_label_NC, labels, videos),
        missing=missing,
        of=len(labels.videos),
        curves={"AP by class, best first": [(float(rank), float(ap)) for rank, ap in enumerate(best_first, 1)]},
    )


def _items(
    found: ClassAP,
    scores_NC: np.ndarray,
    is_label_NC: np.ndarray,
    labels: CharadesLabels,
    videos: list[CharadesVideo],
) -> list[Item]:
    """Return the classes that are shown at all, each with the videos ranked first and the first that is right."""
    items = []
    labelled_N = is_label_NC.any(axis=1)
    for number in np.flatnonzero(np.isfinite(found.ap_C)).tolist():
        ranked = np.argsort(np.where(labelled_N, -scores_NC[:, number], np.inf), kind="stable")
        right = int(ranked[np.argmax(is_label_NC[ranked, number])])
        shown = dict.fromkeys([*ranked[:_SHOWN].tolist(), right])
        items.append(
            Item(
                id=f"c{number:03d}",
                group="class",
                text=labels.classes[number],
                score=float(found.ap_C[number]),
                answer=videos[right].key,
                predicted=videos[int(ranked[0])].key,
                options=[
                    Option(
                        key=videos[row].key,
                        text="; ".join(labels.classes[action] for action in videos[row].actions),
                        score=float(scores_NC[row, number]),
                    )
                    for row in shown
                ],
                note=f"shown by {int(is_label_NC[:, number].sum())} of {len(videos)} videos"
                + ("; the order of equals would matter" if found.tied_C[number] else ""),
            )
        )
    return items


BENCHMARK = Benchmark(
    name="charades_ego",
    set_name="charades_ego",
    split="test",
    evaluate=evaluate,
    title="Charades-Ego: actions of whole videos, mean AP over classes",
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
