"""Dense features of whole videos: a row for each window of W frames, every S frames, over every second.

Windows are [i, i + W) from frame 0; the last one is moved back to [N − W, N), as in Ego4D's own features. A video of
fewer than W frames is one window. Shapes in names: N windows of a video, T frames of a window, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hiervl_train.features.extractor import Extractor, ExtractorError
from shards.decode import DecodeError, Decoder, open_decoder
from shards.features.dense import Damaged, DenseRows
from shards.sampling import centre_crop, frame_numbers

_WINDOWS_PER_PASS = 64


@dataclass(frozen=True, kw_only=True)
class VideoPart:
    """A file with consecutive frames of a video."""

    path: Path | None  # None: its frames could not be stored
    first_frame: int  # of the video
    frames: int
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class WholeVideo:
    """A video as consecutive parts of one frame rate, and the spans that must not be used."""

    video_uid: str
    fps: float
    parts: Sequence[VideoPart]
    damage: Sequence[Damaged]

    @property
    def frames(self) -> int:
        """The number of frames, unusable ones included."""
        return self.parts[-1].first_frame + self.parts[-1].frames if self.parts else 0


def window_starts(frames: int, *, window: int, stride: int) -> np.ndarray:
    """Return the first frame of each window of a video of so many frames, (N,) int64.

    >>> window_starts(39, window=32, stride=16)
    array([0, 7])
    """
    if frames <= window:
        return np.zeros(min(frames, 1), np.int64)
    starts = np.arange(0, frames - window + 1, stride)
    return starts if starts[-1] + window == frames else np.append(starts, frames - window)


def dense_features(
    extractor: Extractor,
    video: WholeVideo,
    *,
    window: int,
    stride: int,
    device: torch.device,
    on_windows: Callable[[int], None] = lambda _: None,
) -> DenseRows:
    """Return the features of all windows of a video, zeros and a mask where a window touches damage.

    Each frame is decoded once. A window with a frame that cannot be decoded is masked, too. An extractor of single
    frames gives the mean over a window's frames. Raises `ExtractorError` for one of texts.
    """
    reads = extractor.reads
    if reads is None:
        raise ExtractorError("dense features are of frames: this extractor reads texts only")
    starts_N = window_starts(video.frames, window=window, stride=stride)
    lengths_N = np.minimum(window, video.frames - starts_N)
    times_N2 = np.stack([starts_N, starts_N + lengths_N], axis=1) / video.fps
    masked: dict[int, str] = {}
    for row, (start, end) in enumerate(times_N2.tolist()):
        for span in video.damage:
            if span.start < end and span.end > start:
                masked.setdefault(row, span.reason)
    numbers_NT = np.stack(
        [
            start + frame_numbers(length, reads.frames, None)
            for start, length in zip(starts_N.tolist(), lengths_N.tolist(), strict=True)
        ]
        or [np.empty(reads.frames, np.int64)]
    )[: len(starts_N)]
    frames = _Frames(video, reads.size)
    values: dict[int, np.ndarray] = {}
    for rows in _blocks([row for row in range(len(starts_N)) if row not in masked]):
        found = frames.read(np.unique(numbers_NT[rows]), keep_from=int(numbers_NT[rows].min()))
        good = [row for row in rows if all(number in found for number in numbers_NT[row].tolist())]
        masked |= {row: frames.reason for row in rows if row not in good}
        if good:
            stacked = np.stack([np.stack([found[n] for n in numbers_NT[row].tolist()]) for row in good])
            clips_NTCHW = torch.from_numpy(stacked).to(device).movedim(-1, -3)
            encoded = extractor.encode_frames(clips_NTCHW)["video"].mean(dim=1).cpu().numpy()
            for row, value in zip(good, encoded, strict=True):
                if np.isfinite(value).all():
                    values[row] = value
                else:
                    masked[row] = "its features are not finite"
        on_windows(len(rows))
    (spec,) = [spec for spec in extractor.arrays("clips") if spec.name == "video"]
    rows_ND = np.zeros((len(starts_N), *spec.shape), spec.dtype)
    for row, value in values.items():
        rows_ND[row] = value
    return DenseRows(rows=rows_ND, times=times_N2, masked=masked)


class _Frames:
    """Decodes frames of a video by number, in ascending order, and keeps those that later windows share."""

    def __init__(self, video: WholeVideo, size: int) -> None:
        self._video, self._size = video, size
        self._decoder: Decoder = open_decoder("pyav")
        self._kept: dict[int, np.ndarray] = {}
        self._media: tuple[Path, bytes] | None = None
        self.reason = ""  # of the last frame that could not be decoded

    def read(self, numbers: np.ndarray, *, keep_from: int) -> dict[int, np.ndarray]:
        """Return number → frame (H, W, C) of those that can be decoded; older ones than `keep_from` are dropped."""
        self._kept = {number: frame for number, frame in self._kept.items() if number >= keep_from}
        missing = np.array([number for number in numbers.tolist() if number not in self._kept], np.int64)
        for part in self._video.parts:
            own = missing[(missing >= part.first_frame) & (missing < part.first_frame + part.frames)]
            if len(own) and part.path is not None:
                self._decode(part, own)
        return self._kept

    def _decode(self, part: VideoPart, numbers: np.ndarray) -> None:
        assert part.path is not None
        if self._media is None or self._media[0] != part.path:
            self._media = (part.path, part.path.read_bytes())
        crop = centre_crop(part.width, part.height)
        try:
            found = self._decoder.decode(self._media[1], numbers - part.first_frame, [crop] * len(numbers), self._size)
        except DecodeError as error:
            self.reason = str(error)
            if len(numbers) > 1:  # which of them?
                for number in numbers:
                    self._decode(part, np.array([number]))
            return
        self._kept |= dict(zip(numbers.tolist(), found, strict=True))


def _blocks(rows: Sequence[int]) -> Iterator[list[int]]:
    for start in range(0, len(rows), _WINDOWS_PER_PASS):
        yield list(rows[start : start + _WINDOWS_PER_PASS])
