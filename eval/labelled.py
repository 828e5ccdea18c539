"""What benchmarks over labelled videos share: reading the labels, and matching them with embeddings.

Shapes in names: N videos, K windows, D width of the shared space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from eval.benchmark import BenchmarkError, Context
from eval.embed import SampleEmbeddings
from eval.results import Missing
from shards.companions import CharadesVideo, EpicVideo, HowToVideo

V = TypeVar("V", CharadesVideo, EpicVideo, HowToVideo)


@dataclass(frozen=True, kw_only=True, eq=False)
class EmbeddedVideos(Generic[V]):
    """The labelled videos that have an embedding, in the order of the labels, and those that have none."""

    videos: list[V]
    vectors: np.ndarray  # one entry per video: (N, D); of a long set (N, K, D)
    missing: list[Missing]


def match_videos(context: Context, videos: Sequence[V], samples: SampleEmbeddings) -> EmbeddedVideos[V]:
    """Return the labelled videos with their embeddings; raise `BenchmarkError` if none of them has one."""
    embedded = [video for video in videos if video.key in samples.index]
    missing = [
        context.missing(samples, video.key, item=video.narration_id if isinstance(video, EpicVideo) else video.key)
        for video in videos
        if video.key not in samples.index
    ]
    if not embedded:
        reason = f": {missing[0].reason}" if missing else ""
        raise BenchmarkError(f"{context.set_name}: none of {len(videos)} videos could be embedded{reason}")
    rows = [samples.index[video.key] for video in embedded]
    return EmbeddedVideos(videos=embedded, vectors=samples.vectors[rows], missing=missing)
