"""Exports videos as files: `folders`, and the conversations of `llava` and `qwen-vl` about them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from shards import files
from shards.dataset import Dataset, Shard, Split
from shards.export.job import Format, Options, ShardExport, caption_of, fields_of

_Results = Sequence[tuple[Split, Shard, Mapping[str, Any]]]
CHAT = {"llava": "<image>", "qwen-vl": "<video>"}  # the token that stands for the video in a question


def _folder_shard(work: ShardExport) -> dict[str, Any]:
    """Write OUT/<set>/<split>/<number>/<key>.mp4, and its lines of metadata."""
    lines = []
    for sample in work.samples(["mp4"]):
        name = f"{work.stem}/{sample.key}.mp4"
        files.write_bytes(work.out / work.split.set_name / work.split.split / name, sample.members["mp4"])
        lines.append(json.dumps({"file_name": name, "key": sample.key, **fields_of(sample.record)}, ensure_ascii=False))
    files.write_bytes(_part(work.out, work.place, "jsonl"), "".join(f"{line}\n" for line in lines).encode())
    return {"samples": len(lines)}


def _folder_finish(dataset: Dataset, out: Path, options: Options, results: _Results) -> None:
    """Write OUT/<set>/<split>/metadata.jsonl, as `videofolder` of Hugging Face datasets reads it."""
    for set_name, split in dict.fromkeys((split.set_name, split.split) for split, _, _ in results):
        shards = [shard for one, shard, _ in results if (one.set_name, one.split) == (set_name, split)]
        with files.replacing(out / set_name / split / "metadata.jsonl") as temporary, temporary.open("wb") as handle:
            for shard in shards:
                handle.write(_part(out, f"{set_name}/{split}/{shard.path.stem}", "jsonl").read_bytes())


def _chat_shard(work: ShardExport, *, token: str) -> dict[str, Any]:
    """Write OUT/videos/<set>/<split>/<number>/<key>.mp4, and a conversation about each."""
    prompts, lines = work.options.prompts_of(work.split.set_name), []
    for sample in work.samples(["mp4"]):
        answer = caption_of(sample.record, raw=work.options.raw_captions)
        if not answer:
            continue
        video = f"{work.place}/{sample.key}.mp4"
        files.write_bytes(work.out / "videos" / video, sample.members["mp4"])
        # Which question is asked depends on the key alone, so that exporting again gives the same.
        question = prompts[int.from_bytes(hashlib.sha256(sample.key.encode()).digest()[:8]) % len(prompts)]
        turns = [{"from": "human", "value": f"{token}\n{question}"}, {"from": "gpt", "value": answer}]
        lines.append(json.dumps({"id": sample.key, "video": video, "conversations": turns}, ensure_ascii=False))
    files.write_bytes(_part(work.out, work.place, "jsonl"), "".join(f"{line}\n" for line in lines).encode())
    return {"samples": len(lines)}


def _chat_finish(dataset: Dataset, out: Path, options: Options, results: _Results) -> None:
    """Write OUT/<set>_<split>.json: a list of conversations, whose videos are relative to OUT/videos."""
    for set_name, split in dict.fromkeys((split.set_name, split.split) for split, _, _ in results):
        shards = [shard for one, shard, _ in results if (one.set_name, one.split) == (set_name, split)]
        with files.replacing(out / f"{set_name}_{split}.json") as temporary, temporary.open("wb") as handle:
            handle.write(b"[")
            is_first = True
            for shard in shards:
                for line in _part(out, f"{set_name}/{split}/{shard.path.stem}", "jsonl").read_bytes().splitlines():
                    handle.write((b"\n" if is_first else b",\n") + line)
                    is_first = False
            handle.write(b"\n]\n")


def _part(out: Path, place: str, ext: str) -> Path:
    return out / ".export" / f"{place}.{ext}"


FOLDERS = Format(
    name="folders",
    title="videos as files, with a metadata.jsonl",
    shard=_folder_shard,
    finish=_folder_finish,
)
LLAVA, QWEN_VL = (
    Format(
        name=name,
        title=f"videos as files, and conversations about them ({token})",
        shard=partial(_chat_shard, token=token),
        finish=_chat_finish,
    )
    for name, token in CHAT.items()
)
