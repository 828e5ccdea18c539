"""Checks `dataset.json` itself: its hash, its form, and whether the configuration in it is one that can build."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shards import files, schema
from shards.dataset import MANIFEST, hash_json
from shards.stats import ShardError, read_json_object
from shards.verify.findings import FINISH, Finding, each, without_root

_CHUNK: dict[str, tuple[type, float, float]] = {
    "seconds": (int, 1, 1e6),
    "short_side": (int, 2, schema.MAX_SIDE),
    "fps": (int, 1, schema.MAX_FPS),
    "gop_seconds": (float, 1e-6, 1e6),
    "b_frames": (int, 0, 16),
    "crf": (int, 0, 51),
    "summary_fps": (int, 1, schema.MAX_FPS),
    "summary_gop_seconds": (float, 1e-6, 1e6),
    "max_gap_seconds": (float, 0, 1e6),
}
"""Type, least and greatest value of the keys of `chunk` that the samples depend on."""
_SHARD: dict[str, tuple[type, float, float]] = {"max_samples": (int, 1, 1e9), "max_bytes": (int, 1, 1e15)}


def read_manifest(root: Path) -> tuple[dict[str, Any], list[Finding]]:
    """Return the contents of `dataset.json`, empty if it cannot be read, and findings about the file itself."""
    path = root / MANIFEST
    try:
        value = read_json_object(path)
    except (ShardError, OSError) as error:
        return {}, [Finding(file=MANIFEST, problem=without_root(error, root), remedy=FINISH)]
    problems = []
    expected = value.pop("sha256", None)
    if expected != (actual := hash_json(value)):
        problems.append(f"altered: the sha256 of its contents is {actual}, but it states {expected}")
    elif files.json_bytes({**value, "sha256": expected}) != path.read_bytes():
        problems.append("altered: the bytes are not those that the build writes for these contents")
    if value.get("schema_version") != schema.SCHEMA_VERSION:
        problems.append(f"schema version {value.get('schema_version')!r}; this code reads {schema.SCHEMA_VERSION}")
    for name in ("sets", "files", "toolchain"):
        if not isinstance(value.get(name), dict):
            problems.append(f"{name}: expected an object, not {value.get(name)!r:.80}")
            value[name] = {}
    problems += config_problems(value)
    return value, list(each(MANIFEST, problems, FINISH))


def config_problems(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Yield values of the configuration and the toolchain that no build can have had."""
    config, toolchain = manifest.get("config"), manifest.get("toolchain")
    if not isinstance(config, dict):
        yield f"config: expected an object, not {config!r:.80}"
        return
    chunk = config.get("chunk", {})
    for name, limits, section in (("chunk", _CHUNK, chunk), ("shard", _SHARD, config.get("shard", {}))):
        if not isinstance(section, dict):
            yield f"config.{name}: expected an object, not {section!r:.80}"
            continue
        for key, (kind, low, high) in limits.items():
            if key in section and not _is_number(section[key], kind, low, high):
                yield f"config.{name}.{key} is {section[key]!r:.80}; expected {kind.__name__} of {low:g} … {high:g}"
    if isinstance(chunk, dict):
        yield from _chunk_problems(chunk)
    if "end_tolerance" in config and not _is_number(config["end_tolerance"], float, 0, 1e6):
        yield f"config.end_tolerance is {config['end_tolerance']!r:.80}; expected float of at least 0"
    for name, version in (toolchain or {}).items() if isinstance(toolchain, dict) else ():
        if not isinstance(version, str):
            yield f"toolchain: {name} is {version!r:.80}; expected text"
        key = name.removeprefix("chunk.")
        if key != name and isinstance(chunk, dict) and key in chunk and str(chunk[key]) != version:
            yield f"toolchain: {name} is {version!r:.80}; config has {chunk[key]!r:.80}"
    provenance = manifest.get("provenance")
    if not isinstance(provenance, dict):
        yield f"provenance: expected an object, not {provenance!r:.80}"


def _chunk_problems(chunk: Mapping[str, Any]) -> Iterator[str]:
    def known(*names: str) -> bool:
        return all(name in chunk and _is_number(chunk[name], *_CHUNK[name]) for name in names)

    if known("short_side") and chunk["short_side"] % 2:
        yield f"config.chunk.short_side is {chunk['short_side']}; expected an even number of pixels"
    if known("fps", "summary_fps") and chunk["fps"] % chunk["summary_fps"]:
        yield f"config.chunk.summary_fps is {chunk['summary_fps']}; it must divide fps, which is {chunk['fps']}"
    if known("gop_seconds", "seconds") and chunk["gop_seconds"] > chunk["seconds"]:
        yield f"config.chunk.gop_seconds is {chunk['gop_seconds']}; at most seconds, which is {chunk['seconds']}"


def _is_number(value: Any, kind: type, low: float, high: float) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else int):
        return False
    return math.isfinite(value) and low <= value <= high
