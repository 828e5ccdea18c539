# PYTHON_ARGCOMPLETE_OK
"""HowTo100M: the class of a long video, from class names without training and by a linear probe; top-1 and top-5.

    python eval/howto100m.py --checkpoint C --shards ROOT [--config F] [key=value …]

The probe is fitted on the embeddings of the train split. Shapes in names: N videos, K windows, D width, C classes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.benchmark import TRAIN, Benchmark, BenchmarkError, BenchmarkOutput, Context, Embeddings, Inputs
from eval.command import main
from eval.embed import SampleEmbeddings
from eval.labelled import match_videos
from eval.metrics.classification import confusion, top_k
from eval.metrics.probe import Probe, fit_probe
from eval.metrics.similarity import cosine
from eval.results import Confusion, Item, Option, Score
from shards.companions import HowToLabels, HowToVideo, read_companion

NAME = "howto100m"
ZERO_SHOT, PROBE = "zero-shot", "linear probe"
PROBE_LOSS = "linear probe: training loss"
_CLASSES_SHOWN = 5  # the top-ranked ones of a video
_CURVE_RANKS = 20


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The labels of the benchmark's split and of the training split, if the dataset has one."""

    test: HowToLabels
    train: HowToLabels | None

    @property
    def class_names(self) -> list[str]:
        """The names of all classes; numbered if the source has no names."""
        if self.test.classes:
            return list(self.test.classes)
        videos = [*self.test.videos, *(self.train.videos if self.train is not None else ())]
        return [f"class {number}" for number in range(1 + max(video.label for video in videos))]


def read(context: Context) -> Labels:
    """Return the labels; raise `CompanionError` if they are absent or malformed."""
    has_train = TRAIN in context.source.dataset.sets[context.set_name]
    return Labels(
        test=read_companion(context.source, context.set_name, context.split, HowToLabels),
        train=read_companion(context.source, context.set_name, TRAIN, HowToLabels) if has_train else None,
    )


def inputs(context: Context, labels: Labels) -> Inputs:
    """Return the class names and the labelled videos."""
    return Inputs(
        texts=labels.test.classes,
        keys=[video.key for video in labels.test.videos],
        train_keys=[video.key for video in labels.train.videos] if labels.train is not None else None,
    )


def score(context: Context, labels: Labels, embeddings: Embeddings) -> BenchmarkOutput:
    """Classify every video zero-shot if classes have names, and by a probe if there is a training split."""
    matched = match_videos(context, labels.test.videos, embeddings.samples)
    videos, windows_NKD = matched.videos, matched.vectors
    names = labels.class_names
    methods: dict[str, np.ndarray] = {}
    curves = {}
    if labels.test.classes:
        methods[ZERO_SHOT] = cosine(context.aggregate(windows_NKD), embeddings.texts.of(labels.test.classes))
    probe = _fit_probe(context, labels.train, embeddings.train, len(names))
    if probe is not None:
        methods[PROBE] = probe.scores(_probe_inputs(context, windows_NKD))
        curves[PROBE_LOSS] = [(float(step), loss) for step, loss in enumerate(probe.losses, 1)]
    if not methods:
        raise BenchmarkError(
            f"{context.set_name}: videos cannot be classified, as the dataset has neither class names nor a training "
            "split with videos of two classes"
        )
    truth_N = np.array([video.label for video in videos])
    scores, items = [], []
    for method, scores_NC in methods.items():
        scores += _scores(context, method, scores_NC, truth_N, len(labels.test.videos))
        items += _items(method, scores_NC, truth_N, videos, names)
        curves[f"{method}: top-k accuracy"] = [
            (float(k), float(top_k(scores_NC, truth_N, k).mean())) for k in range(1, min(_CURVE_RANKS, len(names)) + 1)
        ]
    best_NC = methods.get(PROBE, methods.get(ZERO_SHOT))
    assert best_NC is not None
    counts_CC = confusion(truth_N, best_NC.argmax(axis=1), len(names))
    return BenchmarkOutput(
        scores=scores,
        items=items,
        missing=matched.missing,
        of=len(labels.test.videos),
        curves=curves,
        curve_axes={
            name: ("step", "regularised loss (nats)") if name == PROBE_LOSS else ("k", "top-k accuracy (%)")
            for name in curves
        },
        confusion=Confusion(labels=names, counts=counts_CC.tolist()),
    )


def _fit_probe(
    context: Context, labels: HowToLabels | None, samples: SampleEmbeddings | None, classes: int
) -> Probe | None:
    """Return the probe of the embedded training videos; None if they have fewer than 2 classes."""
    if labels is None or samples is None:
        return None
    videos = [video for video in labels.videos if video.key in samples.index]
    if len({video.label for video in videos}) < 2:
        return None
    context.console.print(f"  fitting the probe on {len(videos):,} of {len(labels.videos):,} training videos")
    windows_NKD = samples.vectors[[samples.index[video.key] for video in videos]]
    config = context.config.probe
    return fit_probe(
        _probe_inputs(context, windows_NKD),
        [video.label for video in videos],
        classes,
        penalty=config.penalty,
        steps=config.steps,
    )


def _probe_inputs(context: Context, windows_NKD: np.ndarray) -> np.ndarray:
    """Return the probe's input (N, D) for each video: by default, as published, the mean over its windows."""
    if context.config.probe.pooling == "aggregator":
        return context.aggregate(windows_NKD)
    mean_ND: np.ndarray = windows_NKD.astype(np.float64).mean(axis=1)
    return mean_ND


def _scores(context: Context, method: str, scores_NC: np.ndarray, truth_N: np.ndarray, of: int) -> list[Score]:
    scores = []
    for k in (1, 5):
        values_N = top_k(scores_NC, truth_N, k)
        tied = int(((values_N > 0) & (values_N < 100)).sum())
        chance = 100 * min(k / scores_NC.shape[1], 1.0)
        scores.append(context.mean_score(NAME, f"{method} top-{k}", values_N, of=of, chance=chance, tied=tied))
    return scores


def _items(
    method: str, scores_NC: np.ndarray, truth_N: np.ndarray, videos: Sequence[HowToVideo], names: Sequence[str]
) -> list[Item]:
    """Return the videos, each with its top-ranked classes and the correct one."""
    values_N = top_k(scores_NC, truth_N, 1)
    items = []
    for row, video in enumerate(videos):
        ranked = np.argsort(-scores_NC[row], kind="stable")
        shown = dict.fromkeys([*ranked[:_CLASSES_SHOWN].tolist(), video.label])
        items.append(
            Item(
                id=video.key,
                group=method,
                text="",
                score=float(values_N[row]),
                answer=names[video.label],
                predicted=names[int(ranked[0])],
                options=[Option(key=names[c], text=names[c], score=float(scores_NC[row, c])) for c in shown],
            )
        )
    return items


BENCHMARK = Benchmark(
    name=NAME,
    set_name=NAME,
    split="val",
    title="HowTo100M: classification of long videos, zero-shot and by a linear probe",
    read=read,
    inputs=inputs,
    score=score,
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
