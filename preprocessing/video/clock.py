"""The clock of a source video: when each of its packets is shown, and where the video begins and ends.

Probing, chunking, the detection of damage and durations all use this one answer. It is made from packets alone, before
any chunk is decoded: from the sample tables and edit list of an mp4 or mov, and by demultiplexing of everything else.

Shapes in names: P packets, in decoding order.
"""

from __future__ import annotations

import io
import itertools
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from shards.files import replacing
from shards.keys import escape_id

NO_TIME = np.iinfo(np.int64).min  # a packet without a time stamp
MAX_SECONDS = 24 * 3600.0  # a video that claims to be longer has a damaged clock
_MAX_HOLD = 1.0  # s; for how long the last frame of a video counts at most
_MOST_MISSING = 0.25  # share of packets without presentation times above which they are all timed by their order
_LEAST_STEP = 1 / 2000  # s from one frame to the next, on average
_HALF = 0.5 + 1e-6  # frames; to the nearest grid frame, halves up
_BACKWARD = 0.25  # s by which decoding times must decrease before that counts as a restart of the clock
_ARRAYS = {"time_P": np.float64, "key_P": np.bool_, "pos_P": np.int64, "size_P": np.int64, "raw_P": np.int64}
_VERSION = 1


class ClockError(ValueError):
    """A source whose frames have no usable times; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class LostSpan:
    """A time span of which the source states that it exists, and has no usable packets."""

    start: float  # s from the video's first frame
    end: float  # s
    reason: str


@dataclass(frozen=True, kw_only=True)
class Packets:
    """What a container says about the packets of a video stream."""

    pts_P: np.ndarray  # int64 ticks; NO_TIME where unknown
    dts_P: np.ndarray  # int64 ticks; NO_TIME where unknown
    duration_P: np.ndarray  # int64 ticks; 0 where unknown
    key_P: np.ndarray  # bool
    pos_P: np.ndarray  # int64, byte offset; −1 where unknown
    size_P: np.ndarray  # int64, bytes
    tick: float  # s

    def __len__(self) -> int:
        return len(self.pts_P)


@dataclass(frozen=True, kw_only=True)
class VideoClock:
    """When the frame of each packet is shown, in s from the first frame that a player shows.

    Where `by_order` is set, the packets have no usable presentation times: `time_P[n]` is then the time of the n-th
    frame that the decoder puts out, whichever packet it comes from.
    """

    time_P: np.ndarray  # float64, s; NaN for a packet that is decoded and not shown
    key_P: np.ndarray  # bool; decoding may start here
    pos_P: np.ndarray  # int64, byte offset; −1 where unknown
    size_P: np.ndarray  # int64, bytes
    raw_P: np.ndarray  # int64, ticks of the container's clock, for seeking
    end: float  # s; when the last frame ends
    stated_end: float  # s; the end according to the container, where that is later
    step: float  # s from one frame to the next (median)
    by_order: bool = False
    lost: tuple[LostSpan, ...] = ()
    notes: tuple[str, ...] = ()  # what was found out of the ordinary

    def frames(self, fps: int) -> int:
        """Return the number of frames of the video at a constant `fps`, at least one."""
        return max(1, round(self.end * fps))

    def slots(self, fps: int) -> np.ndarray:
        """Return the number of the frame of a grid of `fps` frames/s from which each packet's frame is shown, (P,).

        A frame is shown from the grid frame nearest to its time. Packets that are not shown get −1.
        """
        shown = np.isfinite(self.time_P)
        slot_P = np.full(len(self.time_P), -1, np.int64)
        slot_P[shown] = np.floor(self.time_P[shown] * fps + _HALF).astype(np.int64)
        return slot_P

    def key_before(self, seconds: float) -> int:
        """Return the number of the last packet at which decoding may start to show what is shown at `seconds`."""
        keys = np.flatnonzero(self.key_P & (self.time_P <= seconds + 1e-9))
        return int(keys[-1]) if len(keys) else 0

    def moved(self, seconds: float) -> VideoClock:
        """Return the clock with another time 0, `seconds` later; frames before it are not shown."""
        time_P = self.time_P - seconds
        time_P[time_P < -1e-9] = np.nan
        lost = tuple(
            LostSpan(start=max(0.0, s.start - seconds), end=s.end - seconds, reason=s.reason)
            for s in self.lost
            if s.end > seconds
        )
        return replace(self, time_P=time_P, lost=lost, end=self.end - seconds, stated_end=self.stated_end - seconds)


def _fields(clock: VideoClock) -> dict[str, object]:
    return {name: getattr(clock, name) for name in VideoClock.__dataclass_fields__}


def clock_of(
    packets: Packets,
    *,
    trusts_pts: bool,
    rate: float,
    stated_seconds: float = 0.0,
    limit: float = MAX_SECONDS,
) -> VideoClock:
    """Return the clock of a demultiplexed stream; time 0 is its earliest packet.

    `trusts_pts` is false for containers that store no presentation times, whatever libav guesses. `rate` is the mean
    rate of the stream (frames/s; 0: unknown). `stated_seconds` is the length in the container's header, 0 if unknown.
    Nothing later than `limit` (s) is believed. Raises `ClockError` where the stream has no packets or no times.
    """
    if not len(packets):
        raise ClockError("its video stream has no packets")
    notes: list[str] = []
    missing = int((packets.pts_P == NO_TIME).sum())
    by_order = not trusts_pts or missing > _MOST_MISSING * len(packets)
    if by_order:
        seconds_P = _ordered_times(packets, rate)
        notes.append("frames without presentation times: the n-th frame is shown at the n-th time")
    else:
        seconds_P = _joined_times(packets, notes)
        if missing:  # damaged ones
            notes.append(f"{missing} frames without presentation times are not shown")
    shown = seconds_P[np.isfinite(seconds_P)]
    seconds_P = seconds_P - shown.min()
    return finish(
        seconds_P,
        packets.duration_P * packets.tick,
        packets=packets,
        by_order=by_order,
        stated_end=stated_seconds - (0.0 if by_order else max(0.0, float(shown.min()))) if stated_seconds else 0.0,
        limit=limit,
        notes=notes,
    )


def finish(
    time_P: np.ndarray,
    hold_P: np.ndarray,
    *,
    packets: Packets,
    by_order: bool = False,
    end: float | None = None,
    stated_end: float = 0.0,
    limit: float = MAX_SECONDS,
    notes: list[str] | None = None,
    lost: tuple[LostSpan, ...] = (),
) -> VideoClock:
    """Return the clock of packets shown at `time_P` (s, NaN: not shown) for `hold_P` (s), with a believable end.

    `end` (s) bounds the end, as an edit list does.
    """
    said = [] if notes is None else notes
    begin = _believed_start(time_P, limit)
    is_absurd = (time_P < begin) | (time_P > begin + limit)
    if is_absurd.any():
        spread = float(np.nanmax(time_P) - np.nanmin(time_P))
        said.append(f"time stamps {spread:.0f} s apart, more than {limit:.0f} s, are not believed")
        time_P = np.where(is_absurd, np.nan, time_P) - begin
        end = None if end is None else end - begin
    order = np.flatnonzero(np.isfinite(time_P))
    if not len(order):
        raise ClockError("none of its frames is ever shown: its edit list or time stamps are damaged")
    shown = np.sort(time_P[order])
    steps = np.diff(shown)
    steps = steps[steps > 0]
    step = float(np.median(steps)) if len(steps) else 1 / 30
    if len(shown) > 1 and (shown[-1] - shown[0]) / (len(shown) - 1) < _LEAST_STEP:
        raise ClockError(f"its time stamps are damaged: {len(shown)} frames within {shown[-1] - shown[0]:.3f} s")
    last_packet = order[np.argmax(time_P[order])]
    hold = step if by_order else float(hold_P[last_packet]) or step
    last_end = float(shown[-1]) + min(hold, max(_MAX_HOLD, 2.5 * step))
    if end is not None:
        last_end = min(last_end, end)
    if not 0 < stated_end <= limit:
        if stated_end > limit:
            said.append(f"its header states {stated_end:.0f} s, which is not believed")
        stated_end = last_end
    return VideoClock(
        time_P=time_P,
        key_P=packets.key_P,
        pos_P=packets.pos_P,
        size_P=packets.size_P,
        raw_P=packets.pts_P,
        end=last_end,
        stated_end=max(last_end, stated_end),
        step=step,
        by_order=by_order,
        lost=lost,
        notes=tuple(said),
    )


def _believed_start(time_P: np.ndarray, limit: float) -> float:
    """Return the start of the span of `limit` s that has the most packets; 0, the earliest packet, where that has."""
    times = np.sort(time_P[np.isfinite(time_P)])
    if not len(times) or times[-1] <= limit:
        return 0.0
    inside = np.searchsorted(times, times + limit, side="right") - np.arange(len(times))
    return float(times[np.argmax(inside)])


def _ordered_times(packets: Packets, rate: float) -> np.ndarray:
    """Return the times (s) of the frames in the order in which they are put out, from decoding times or the rate."""
    if (packets.dts_P == NO_TIME).any():
        if not rate > 0:
            raise ClockError("its frames have no time stamps and its frame rate is unknown; remux it into mp4 or mkv")
        return np.arange(len(packets)) / rate
    return np.sort(packets.dts_P - packets.dts_P.min()) * packets.tick


def _joined_times(packets: Packets, notes: list[str]) -> np.ndarray:
    """Return the presentation times (s) of packets; where the clock goes back, the rest continues where it stopped.

    The clock goes back where a key frame is not later than every frame before it in decoding order, or where decoding
    times decrease. Frames of the later part that precede its first key frame cannot be decoded and get NaN.
    """
    seconds_P = np.where(packets.pts_P == NO_TIME, np.nan, packets.pts_P * packets.tick)
    starts = _restarts(packets, seconds_P)
    if not len(starts):
        return seconds_P
    joined = seconds_P.copy()
    bounds = [0, *starts.tolist(), len(packets)]
    step = _typical_step(seconds_P[: bounds[1]])
    begin, last = float(np.nanmin(seconds_P[: bounds[1]])), float(np.nanmax(seconds_P[: bounds[1]]))
    for start, stop in itertools.pairwise(bounds[1:]):
        timed = np.isfinite(seconds_P[start:stop])
        keys = np.flatnonzero(packets.key_P[start:stop] & timed)
        first = start + int(keys[0] if len(keys) else np.argmax(timed))
        shift = last + step - float(seconds_P[first])
        back = float(np.nanmax(seconds_P[:first] if start == bounds[1] else seconds_P[bounds[1] : first]))
        notes.append(f"the clock jumps back by {back - float(seconds_P[first]):.3f} s at {last - begin:.3f} s")
        part = seconds_P[start:stop] + shift
        part[part < last + step / 2] = np.nan
        joined[start:stop] = part
        if np.isfinite(part).any():
            last = float(np.nanmax(part))
    return joined


def _restarts(packets: Packets, seconds_P: np.ndarray) -> np.ndarray:
    """Return the numbers of the packets at which the clock goes back."""
    dts_P, half = packets.dts_P, _typical_step(seconds_P) / 2
    known = (dts_P[1:] != NO_TIME) & (dts_P[:-1] != NO_TIME)
    goes_back = np.zeros(len(packets), bool)
    goes_back[1:] = known & ((dts_P[1:] - dts_P[:-1]) * packets.tick < -_BACKWARD)
    starts: list[int] = []
    since = at_before = 0
    before = -np.inf  # the latest time since the last restart
    key_at = np.flatnonzero(packets.key_P & np.isfinite(seconds_P))
    for at in np.union1d(np.flatnonzero(goes_back), key_at).tolist():
        if at > at_before:
            before = float(np.fmax.reduce(seconds_P[at_before:at], initial=before))
        following = int(np.searchsorted(key_at, at))
        first = int(key_at[following]) if following < len(key_at) else at  # what precedes it cannot be decoded
        if at > since and seconds_P[first] <= before - half:
            starts.append(at)
            since, before = at, -np.inf
        at_before = at
    return np.array(starts, np.int64)


def _typical_step(seconds: np.ndarray) -> float:
    steps = np.diff(np.sort(seconds[np.isfinite(seconds)]))
    steps = steps[steps > 0]
    return float(np.median(steps)) if len(steps) else 1 / 30


def clock_path(work: Path, video_uid: str) -> Path:
    """Return the path of the file that keeps a video's clock in the work folder."""
    return work / "clocks" / f"{escape_id(video_uid)}.npz"


def save_clock(path: Path, clock: VideoClock, identity: tuple[int, ...]) -> None:
    """Write a clock with the identity of its source (`source_identity`)."""
    arrays = {name: getattr(clock, name) for name in _ARRAYS}
    meta = {name: value for name, value in _fields(clock).items() if name not in arrays}
    meta["lost"] = [asdict(span) for span in clock.lost]
    text = json.dumps({"version": _VERSION, "identity": identity, "clock": meta})
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, meta=np.frombuffer(text.encode(), np.uint8), **arrays)


def load_clock(path: Path, identity: tuple[int, ...] | None = None) -> VideoClock | None:
    """Return a saved clock; None where there is none, it cannot be read, or it is of another version of the source."""
    try:
        data = path.read_bytes()
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            value = json.loads(file["meta"].tobytes())
            arrays = {name: file[name] for name in _ARRAYS}
        if value["version"] != _VERSION or (identity is not None and tuple(value["identity"]) != identity):
            return None
        kinds = [(array.shape, array.dtype) for array in arrays.values()]
        if kinds != [(arrays["time_P"].shape, np.dtype(kind)) for kind in _ARRAYS.values()] or len(kinds[0][0]) != 1:
            return None
        meta = value["clock"]
        meta["lost"] = tuple(LostSpan(**span) for span in meta["lost"])
        meta["notes"] = tuple(meta["notes"])
        return VideoClock(**meta, **arrays)
    except Exception:  # noqa: BLE001  what zip files and arrays may be damaged like, their readers do not list
        return None


def same_packets(one: VideoClock, other: VideoClock) -> bool:
    """Return whether two clocks have the same packets at the same times: those of different contents differ."""
    return all(
        np.array_equal(getattr(one, name), getattr(other, name), equal_nan=kind is np.float64)
        for name, kind in _ARRAYS.items()
    )


def source_identity(path: Path) -> tuple[int, int, int]:
    """Return size (bytes), modification time (ns) and inode of a file: a changed source differs in one of them."""
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns, stat.st_ino
