"""Finds own videos, whatever their files are called, and the video that a caption means.

The uid of an own video is its path below `videos.root` with its extension, `:` in place of `/`: file names are what
people know their videos by, and two files never share one.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from preprocessing.annotations.values import is_uid, show
from preprocessing.errors import TransientError, UsageError
from preprocessing.own.subtitles import EXTENSIONS as SUBTITLES
from preprocessing.video.sources import PREVIEW_EXTENSIONS, SIDECAR_EXTENSIONS, VIDEO_EXTENSIONS, holds_video

MISSING = "missing"
_SAID = 3  # files that a message names
_MOST_SUGGESTIONS = 100  # missing names for which similar ones are looked up, which takes time


@dataclass(frozen=True, kw_only=True)
class OwnFiles:
    """The videos below a folder, the subtitles beside them, and what was passed over."""

    root: Path
    videos: dict[str, Path]  # uid → file
    subtitles: dict[str, Path] = field(default_factory=dict)  # uid → the file of its subtitles
    messages: tuple[str, ...] = ()  # sentences about files that were passed over


def find_own_videos(root: Path, pattern: str, *, besides: Iterable[Path] = ()) -> OwnFiles:
    """Return the videos that match `pattern` below `root`, without hidden ones and without those below `besides`.

    A preview that a camera keeps beside a video (`.LRV`) is passed over, and so are files that are no video. Raises
    `UsageError` where there is no such folder or no video in it, and `TransientError` where it cannot be read.
    """
    try:
        next(root.iterdir(), None)
        files = sorted(path for path in root.glob(pattern) if _is_candidate(path, root, list(besides)))
    except FileNotFoundError:
        raise UsageError(f"videos.root = {root}: there is no such folder") from None
    except NotADirectoryError:
        raise UsageError(f"videos.root = {root}: expected a folder of videos, found a file") from None
    except OSError as error:
        raise TransientError(f"videos.root = {root}: {error.strerror}") from error
    chosen = [path for path in files if path.suffix[1:].lower() in VIDEO_EXTENSIONS]
    known = {(path.parent, path.stem.lower()) for path in chosen}
    others = [path for path in files if path.suffix[1:].lower() not in (*VIDEO_EXTENSIONS, *SIDECAR_EXTENSIONS)]
    previews = [path for path in others if path.suffix[1:].lower() in PREVIEW_EXTENSIONS]
    chosen += [path for path in previews if (path.parent, path.stem.lower()) not in known]
    chosen += [path for path in others if path not in previews and holds_video(path)]
    videos: dict[str, Path] = {}
    refused: list[str] = []
    for path in sorted(chosen):
        uid = ":".join(path.relative_to(root).parts)
        if is_uid(uid) and uid not in videos:
            videos[uid] = path
        else:
            refused.append(show(str(path.relative_to(root))))
    if not videos:
        raise UsageError(_nothing(root, pattern, files))
    messages = []
    if refused:
        messages.append(f"videos.root: {_some(refused)}: such a name cannot be stored; rename it")
    subtitles, more = _subtitles(files, videos)
    return OwnFiles(root=root, videos=videos, subtitles=subtitles, messages=(*messages, *more))


def _is_candidate(path: Path, root: Path, besides: Sequence[Path]) -> bool:
    parts = path.relative_to(root).parts
    if any(part.startswith(".") for part in parts) or not path.is_file():
        return False
    whole = path.absolute()
    return not any(whole.is_relative_to(folder.absolute()) for folder in besides)


def _nothing(root: Path, pattern: str, files: Sequence[Path]) -> str:
    """Return the message about a folder without a video."""
    if files:
        return f"videos.root = {root}: none of its {len(files)} files is a video, such as {files[0].relative_to(root)}"
    hint = ' (videos.pattern="**/*" also looks into folders)' if "**" not in pattern else ""
    return f"videos.root = {root}: no file matches videos.pattern = {pattern}{hint}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SAID} more" if len(names) > _SAID else ""
    return ", ".join(names[:_SAID]) + more


def _subtitles(files: Sequence[Path], videos: Mapping[str, Path]) -> tuple[dict[str, Path], list[str]]:
    """Return uid → subtitles (`a.srt`, `a.mp4.srt` or else `a.en.srt` beside `a.mp4`), and what is not used."""
    by_folder: dict[Path, list[Path]] = {}
    for path in files:
        if path.suffix.lower() in SUBTITLES:
            by_folder.setdefault(path.parent, []).append(path)
    found: dict[str, Path] = {}
    passed_over: list[str] = []
    for uid, video in videos.items():
        own = [(rank, path) for path in by_folder.get(video.parent, []) if (rank := _rank(path, video)) is not None]
        own.sort(key=lambda each: (each[0], each[1].name))
        if own:
            found[uid] = own[0][1]
            passed_over += [path.name for _, path in own[1:]]
    used = set(found.values())
    passed_over = [name for name in dict.fromkeys(passed_over) if name not in {path.name for path in used}]
    said = f"subtitles: {_some(passed_over)} passed over: one file a video is used" if passed_over else ""
    return found, [said] * bool(said)


def _rank(path: Path, video: Path) -> int | None:
    """Return how well subtitles fit a video by name; None where they do not."""
    stem = path.stem
    if stem in (video.stem, video.name):
        return 0
    return 1 if stem.rpartition(".")[0] in (video.stem, video.name) else None


class VideoNames:
    """Finds the video that a caption names: by path, file name or file name without extension.

    Names are compared in Unicode's composed form, as some systems store `ü` as two characters; where nothing else fits,
    also without regard to case.
    """

    def __init__(self, files: OwnFiles) -> None:
        self._root = _composed(files.root.absolute().as_posix())
        self._paths = {uid: path.relative_to(files.root).as_posix() for uid, path in files.videos.items()}
        self._suggested = 0
        self._tables: list[dict[str, list[str]]] = [{}, {}, {}, {}]  # path, path without extension, name, stem
        self._folded: dict[str, list[str]] = {}  # any of these without regard to case
        for uid, text in self._paths.items():
            path = PurePosixPath(_composed(text))
            names = [str(path), str(path.with_suffix("")), path.name, path.stem]
            for table, name in zip(self._tables, names, strict=True):
                table.setdefault(name, []).append(uid)
            for name in dict.fromkeys(each.casefold() for each in names):
                self._folded.setdefault(name, []).append(uid)

    def find(self, name: str) -> tuple[str, str]:
        """Return the uid of a video and nothing, or nothing and why none is meant: `reason: value`."""
        wanted = _composed(name.strip().replace("\\", "/")).removeprefix(f"{self._root}/").removeprefix("./")
        parts = wanted.split("/")
        tails = ["/".join(parts[start:]) for start in range(len(parts))]  # a table may name folders above the root
        for tail in tails:
            for table in self._tables:
                if found := table.get(tail):
                    return self._only(name, found)
        for tail in tails:
            if found := self._folded.get(tail.casefold()):
                return self._only(name, found)
        return "", f"{MISSING}: no file {show(name)} in videos.root{self._suggestion(parts[-1])}"

    def _suggestion(self, name: str) -> str:
        self._suggested += 1
        if self._suggested > _MOST_SUGGESTIONS:
            return ""
        near = difflib.get_close_matches(name, [path.rpartition("/")[2] for path in self._paths.values()], n=1)
        return f"; did you mean {near[0]!r}?" if near else ""

    def _only(self, name: str, found: Sequence[str]) -> tuple[str, str]:
        if len(found) == 1:
            return found[0], ""
        paths = ", ".join(self._paths[uid] for uid in found[:_SAID])
        return "", f"ambiguous video: {show(name)} may be {paths}; give the path below videos.root"


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)
