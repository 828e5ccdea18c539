"""Finds source videos on disk, selects subsets of them, probes them, and tells a lost mount from a lost file."""

from __future__ import annotations

import hashlib
import logging
import stat
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import av

from preprocessing.errors import TransientError, UsageError
from preprocessing.video.probe import ProbedVideo, UnreadableError, probe, probe_frame_folder

# Extensions of videos, in the order in which one of several files of a video is taken.
VIDEO_EXTENSIONS = (
    *("mp4", "mov", "m4v", "mkv", "webm", "mts", "m2ts", "m2t", "ts", "avi", "mxf", "insv", "360", "qt", "mpg", "mpeg"),
    *("m2v", "m1v", "mod", "tod", "vob", "wmv", "asf", "flv", "f4v", "3gp", "3g2", "ogv", "ogm", "divx", "dv", "rm"),
    *("rmvb", "ivf", "h264", "264", "h265", "265", "hevc", "mjpeg", "mjpg"),
)
# Copies of low resolution that cameras keep beside a video (GoPro, DJI): taken where there is nothing else.
PREVIEW_EXTENSIONS = ("lrv", "lrf")
# What lies beside videos and is none: images, subtitles, sound, metadata, tracks, archives, arrays, unfinished copies.
SIDECAR_EXTENSIONS = frozenset(
    (
        *("thm", "jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "heic", "heif", "svg", "dng"),
        *("srt", "vtt", "ass", "ssa", "sub", "idx", "sbv", "sup", "ttml", "dfxp", "lrc", "smi"),
        *("wav", "mp3", "m4a", "aac", "flac", "opus", "wma", "aif", "aiff", "ac3", "mka"),
        *("json", "jsonl", "xml", "txt", "md", "rst", "html", "htm", "csv", "tsv", "yaml", "yml", "toml", "ini"),
        *("cfg", "conf", "log", "nfo", "rtf", "pdf", "doc", "docx", "xls", "xlsx"),
        *("gpx", "fit", "kml", "kmz", "tcx", "nmea", "gcsv", "vrs", "xmp", "exif", "cpi", "bdm", "mpl", "bnp"),
        *("tar", "gz", "tgz", "bz2", "xz", "zst", "lz4", "zip", "7z", "rar"),
        *("npy", "npz", "pt", "pth", "pkl", "pickle", "h5", "hdf5", "parquet", "arrow", "feather", "mat"),
        *("safetensors",),
        *("md5", "sha1", "sha256", "sha512", "crc", "sfv", "par2", "sig", "asc", "torrent", "url", "lnk", "db"),
        *("part", "partial", "crdownload", "download", "ytdl", "aria2", "filepart"),
    )
)
# To look at what may be any file, libav may open single local files of these containers, not playlists.
_CONTAINERS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,mxf,h264,hevc,m4v,mjpeg,ivf"
_SAID = 5  # videos that a message names
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SourcePlace:
    """Where a source is, and what tells a lost mount from a lost file."""

    path: Path  # a video file, or a folder of numbered frames
    root: Path  # videos.root
    neighbours: tuple[Path, ...] = ()  # other sources in the same folder

    def require_reachable(self) -> None:
        """Raise `TransientError` where the source cannot be read, and neither can what should be around it.

        A file that cannot be read while its neighbours can is the file's fault, and raises nothing.
        """
        if not _has_entries(self.root):
            raise TransientError(f"videos.root = {self.root}: disappeared or became empty during the build")
        if _is_readable(self.path):
            return
        folders = [self.path.parent, *([self.path.resolve().parent] if self.path.is_symlink() else [])]
        for folder in folders:
            if not _has_entries(folder):
                raise TransientError(
                    f"videos.root = {self.root}: {folder} disappeared or became empty during the build"
                )
        if self.neighbours and not any(map(_is_readable, self.neighbours)):
            raise TransientError(
                f"videos.root = {self.root}: {self.path.name} and its neighbours, such as {self.neighbours[0].name}, "
                "disappeared or became unreadable during the build"
            )


def places(video_paths: Mapping[str, Path], root: Path) -> dict[str, SourcePlace]:
    """Return video_uid → place of every source found below `root`, with up to four neighbours each."""
    by_folder: dict[Path, list[Path]] = {}
    for path in sorted(video_paths.values()):
        by_folder.setdefault(path.parent, []).append(path)
    at = {path: (siblings, i) for siblings in by_folder.values() for i, path in enumerate(siblings)}
    found = {}
    for uid, path in video_paths.items():
        siblings, i = at[path]
        near = (*siblings[max(0, i - 2) : i], *siblings[i + 1 : i + 3])
        found[uid] = SourcePlace(path=path, root=root, neighbours=near)
    return found


@dataclass(frozen=True, kw_only=True)
class ProbeTask:
    """One unit of work: probe one source."""

    video_uid: str
    path: Path  # a video file, or a folder of numbered frames
    root: Path  # videos.root, to distinguish a lost mount from a lost file
    neighbours: tuple[Path, ...] = ()  # other sources in the same folder, for the same purpose
    frames_fps: float | None = None  # frame rate of such a folder; None: unknown
    stated_seconds: float | None = None  # duration according to metadata; None: unknown
    clock_file: Path | None = None  # where the clock of the video is kept


def find_videos(root: Path, pattern: str = "*", *, wanted: Collection[str] | None = None) -> dict[str, Path]:
    """Return video_uid → path of every file `<video_uid>.<extension>` and every folder `<video_uid>` of frames.

    `pattern` is a glob below `root`, such as `*/rgb_frames/*`. Passed over are hidden files, what is no file (a link to
    nothing, a socket), and files whose extension says that they are no video; any other extension may be one. Of
    several videos with the same uid, one is taken and a warning says which: see `_choose`. Only uids in `wanted` (all
    if None) are worth a warning or an error.

    Raises `UsageError` where there is no such folder, it has no videos, or two different files are equally good, and
    `TransientError` where it cannot be read.
    """
    try:
        next(root.iterdir(), None)
        candidates, passed_over = _candidates(root, pattern)
    except FileNotFoundError:
        raise UsageError(f"videos.root = {root}: there is no such folder") from None
    except NotADirectoryError:
        raise UsageError(f"videos.root = {root}: expected a folder of videos, found a file") from None
    except OSError as error:
        raise TransientError(f"videos.root = {root}: {error.strerror}") from error
    paths: dict[str, Path] = {}
    said = []
    for uid, files in candidates.items():
        is_wanted = wanted is None or uid in wanted
        paths[uid], others = _choose(uid, files, root, is_wanted=is_wanted)
        if others and is_wanted:
            names = ", ".join(str(other.relative_to(root)) for other in others)
            said.append(f"{uid}: {paths[uid].relative_to(root)} is taken, not {names}")
    if said:
        more = f"; and {len(said) - _SAID} more" if len(said) > _SAID else ""
        logger.warning("videos.root: several videos of one uid: %s%s", "; ".join(said[:_SAID]), more)
    if not paths and passed_over:
        raise UsageError(
            f"videos.root = {root}: no videos among what matches videos.pattern = {pattern}, such as "
            f"{passed_over[0].relative_to(root)}"
        )
    if not paths and pattern != "*":
        raise UsageError(f"videos.root = {root}: no file or folder matches videos.pattern = {pattern}")
    if not paths:
        raise UsageError(f"videos.root = {root} is empty: is its disk mounted?")
    return paths


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    path: Path
    size: int  # bytes; of a folder, 1
    kind: int  # 0: a video by its extension, 1: unknown extension, 2: preview, 3: folder
    extension: str  # lower case

    @property
    def rank(self) -> tuple[bool, int, int, str]:
        """What comes first is taken: what has content, kind, the extension's place in the list, the name."""
        order = VIDEO_EXTENSIONS.index(self.extension) if self.kind == 0 else 0
        return self.size == 0, self.kind, order, str(self.path)


def _candidates(root: Path, pattern: str) -> tuple[dict[str, list[_Candidate]], list[Path]]:
    """Return what may be a video, by uid, each list with the best one first; and what is passed over."""
    found: dict[str, list[_Candidate]] = {}
    passed_over: list[Path] = []
    for path in sorted(root.glob(pattern)):
        if path.name.startswith("."):
            continue
        candidate = _candidate(path)
        if candidate is None:
            passed_over.append(path)
        else:
            uid = path.name if candidate.kind == 3 else path.name.rpartition(".")[0] or path.name
            found.setdefault(uid, []).append(candidate)
    for files in found.values():
        files.sort(key=lambda file: file.rank)
    return found, passed_over


def _candidate(path: Path) -> _Candidate | None:
    """Return what a path may be as a video; None for what is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None  # a link to nothing, or deleted since the folder was listed
    except OSError:
        return _Candidate(path=path, size=1, kind=1, extension="")  # for probing to say what is wrong
    if stat.S_ISDIR(status.st_mode):
        return _Candidate(path=path, size=1, kind=3, extension="")
    extension = path.suffix[1:].lower()
    if not stat.S_ISREG(status.st_mode) or extension in SIDECAR_EXTENSIONS:
        return None
    kind = 0 if extension in VIDEO_EXTENSIONS else 2 if extension in PREVIEW_EXTENSIONS else 1
    return _Candidate(path=path, size=status.st_size, kind=kind, extension=extension)


def _choose(uid: str, files: Sequence[_Candidate], root: Path, *, is_wanted: bool) -> tuple[Path, list[Path]]:
    """Return the file of a video that is taken, and the other videos that are not.

    The order: a known video extension (mp4 before mov, mkv, …), an unknown extension, a camera's preview (`.LRV`), a
    folder of frames; at equal extensions, the first by name. Where more than one could be the video, the first that
    holds a video stream is taken. Raises `UsageError` for different files of the same name and kind in several folders,
    of which none is better than the other.
    """
    best = files[0]
    rivals = [file for file in files if file.size and file.kind == best.kind]
    if len(files) > 1 and (len(rivals) > 1 or best.kind == 1) and is_wanted:
        sound = [file for file in files if file.kind > 1 or holds_video(file.path)]
        best = next(iter(sound), best)
        files = sound or files
    for other in files:
        same = other.kind == best.kind and other.extension == best.extension
        if is_wanted and same and other.path.parent != best.path.parent and other.size != best.size:
            names = [str(file.path.relative_to(root)) for file in (best, other)]
            raise UsageError(
                f"videos.root: {names[0]} and {names[1]} are both video {uid} and differ; keep one, or choose with "
                "videos.pattern"
            )
    known = [file.path for file in files if file is not best and (file.kind != 1 or best.kind == 1)]
    return best.path, known


def holds_video(path: Path) -> bool:
    """Return whether a file can be opened as a video: by its content, whatever its name."""
    options = {"protocol_whitelist": "file", "format_whitelist": _CONTAINERS}
    try:
        with av.open(f"file:{path}", options=options, metadata_errors="ignore") as container:
            return bool(container.streams.video)
    except (OSError, ValueError, av.FFmpegError):
        return False


def subset(video_uids: Iterable[str], *, limit: int | None, seed: int) -> set[str]:
    """Return `limit` of the videos (all if None), chosen by a seeded hash of their uids and thus reproducible."""
    if limit is None:
        return set(video_uids)
    return set(sorted(video_uids, key=lambda uid: hashlib.blake2b(f"{seed}:{uid}".encode()).digest())[:limit])


def probe_video(task: ProbeTask) -> ProbedVideo | str:
    """Return the properties of a video, or `unreadable: detail` where it cannot be used.

    Raises `TransientError` where the file's mount is lost.
    """
    place = SourcePlace(path=task.path, root=task.root, neighbours=task.neighbours)
    try:
        if task.path.is_dir():
            return probe_frame_folder(task.path, task.frames_fps, stated_seconds=task.stated_seconds)
        return probe(task.path, stated_seconds=task.stated_seconds, clock_file=task.clock_file)
    except UnreadableError as error:
        place.require_reachable()
        return f"unreadable: {error}"
    except OSError as error:
        place.require_reachable()
        return f"unreadable: {error.strerror or error}"


def _is_readable(path: Path) -> bool:
    """Return whether a file's first byte, or a folder's first entry, can be read."""
    try:
        if path.is_dir():
            return _has_entries(path)
        with path.open("rb") as file:
            file.read(1)
    except OSError:
        return False
    return True


def _has_entries(folder: Path) -> bool:
    """Return whether a folder has entries: the mount point of a lost disk is absent or empty."""
    try:
        return next(folder.iterdir(), None) is not None
    except OSError:
        return False
