"""HowTo100M: the class of a long video, from class names without training and by a linear probe; top-1 and top-5.

    python eval/howto100m.py --checkpoint C --shards ROOT [--config F] [key=value …]

The probe learns from the embeddings of the train split. Shapes in names: N videos, K windows, D width, C classes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from eval.benchmark import Benchmark, BenchmarkOutput, Context, main
from eval.embed import Embedded
from eval.metrics.bootstrap import interval_of_mean
from eval.metrics.classification import confusion, top_k
from eval.metrics.similarity import cosine
from eval.probe import Probe, fit_probe
from eval.results import Confusion, Item, Missing, Option, Score
from shards.companions import HowToLabels, HowToVideo, read_companion

TRAIN = "train"
ZERO_SHOT, PROBE = "zero-shot", "linear probe"
_SHOWN = 5  # classes of a video that the page shows
_TOPS = (1, 5)
_CURVE = 20  # ranks


def evaluate(context: Context) -> BenchmarkOutput | None:
    """Classify every video of the split in each way that the dataset allows."""
    labels = _labels(context, context.split)
    learnt = _labels(context, TRAIN) if TRAIN in context.source.dataset.sets[context.set_name] else None
    embedded = context.embed(keys=[video.key for video in labels.videos])
    training = context.embed(split=TRAIN, keys=[video.key for video in learnt.videos]) if learnt is not None else None
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
        why = f": {missing[0].reason}" if missing else ""
        raise ValueError(f"none of {len(labels.videos)} videos could be embedded{why}")
    windows_NKD = embedded.vectors[[index[video.key] for video in videos]]
    names = _class_names(labels, learnt)
    ways: dict[str, np.ndarray] = {}
    curves = {}
    if labels.classes:
        ways[ZERO_SHOT] = cosine(context.aggregate(windows_NKD), texts.of(labels.classes))
    probe = _fit(context, learnt, training, len(names))
    if probe is not None:
        ways[PROBE] = probe.scores(_pooled(context, windows_NKD))
        curves["linear probe: loss by step"] = [(float(n), loss) for n, loss in enumerate(probe.losses, 1)]
    if not ways:
        raise ValueError(
            f"{context.set_name} has neither names of classes nor a training split with videos of two classes: "
            "there is no way to classify"
        )
    truth = np.array([video.label for video in videos])
    scores, items = [], []
    for way, scores_NC in ways.items():
        scores += _scores(context, way, scores_NC, truth, len(labels.videos))
        items += _items(way, scores_NC, truth, videos, names)
        curves[f"{way}: accuracy among the first k, % by k"] = [
            (float(k), float(top_k(scores_NC, truth, k).mean())) for k in range(1, min(_CURVE, len(names)) + 1)
        ]
    counts = confusion(truth, scores_NC.argmax(axis=1), len(names))
    return BenchmarkOutput(
        scores=scores,
        items=items,
        missing=missing,
        of=len(labels.videos),
        curves=curves,
        confusion=Confusion(labels=names, counts=counts.tolist()),
    )


def _labels(context: Context, split: str) -> HowToLabels:
    return read_companion(context.source, context.set_name, split, HowToLabels)


def _class_names(labels: HowToLabels, learnt: HowToLabels | None) -> list[str]:
    """Return the names of all classes; numbers where the source gives none."""
    if labels.classes:
        return list(labels.classes)
    every = [*labels.videos, *(learnt.videos if learnt is not None else ())]
    return [f"class {number}" for number in range(1 + max(video.label for video in every))]


def _fit(context: Context, learnt: HowToLabels | None, training: Embedded | None, classes: int) -> Probe | None:
    """Return the probe of the training videos that could be embedded; None where they are of fewer than 2 classes."""
    if learnt is None or training is None:
        return None
    index = training.index
    videos = [video for video in learnt.videos if video.key in index]
    if len({video.label for video in videos}) < 2:
        return None
    context.console.print(f"  the probe learns from {len(videos):,} of {len(learnt.videos):,} training videos")
    config = context.config.probe
    pooled_ND = _pooled(context, training.vectors[[index[video.key] for video in videos]])
    labels = [video.label for video in videos]
    return fit_probe(pooled_ND, labels, classes, penalty=config.penalty, steps=config.steps)


def _pooled(context: Context, windows_NKD: np.ndarray) -> np.ndarray:
    """Return what the probe sees of a video: by default, as published, the mean over its windows."""
    if context.config.probe.pooling == "aggregator":
        return context.aggregate(windows_NKD)
    return windows_NKD.astype(np.float64).mean(axis=1)


def _scores(context: Context, way: str, scores_NC: np.ndarray, truth: np.ndarray, of: int) -> list[Score]:
    found = []
    for k in _TOPS:
        values = top_k(scores_NC, truth, k)
        interval = interval_of_mean(values, seed=context.config.seed, resamples=context.config.resamples)
        tied = int(((values > 0) & (values < 100)).sum())
        name = f"{way} top-{k}"
        found.append(
            context.score("howto100m", name, values.mean(), interval, items=len(values), of=of, tied=tied),
        )
    return found


def _items(
    way: str, scores_NC: np.ndarray, truth: np.ndarray, videos: Sequence[HowToVideo], names: Sequence[str]
) -> list[Item]:
    values = top_k(scores_NC, truth, 1)
    items = []
    for row, video in enumerate(videos):
        ranked = np.argsort(-scores_NC[row], kind="stable")
        shown = dict.fromkeys([*ranked[:_SHOWN].tolist(), video.label])
        items.append(
            Item(
                id=video.key,
                group=way,
                text="",
                score=float(values[row]),
                answer=names[video.label],
                predicted=names[int(ranked[0])],
                options=[Option(key=names[c], text=names[c], score=float(scores_NC[row, c])) for c in shown],
            )
        )
    return items


BENCHMARK = Benchmark(
    name="howto100m",
    set_name="howto100m",
    split="val",
    evaluate=evaluate,
    title="HowTo100M: classification of long videos, zero-shot and by a linear probe",
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
