"""Reads a YAML file and `key=value` overrides into a typed, frozen dataclass, and writes one back.

A key that the dataclass does not have, or a value of a wrong type, is a `ConfigError` that names the key, the
value and the nearest known key. There is no other way to configure anything in this project.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key, the value and what would be right."""


def load(cls: type[T], path: str | Path | None = None, overrides: Sequence[str] = ()) -> T:
    """Return `cls` filled from the YAML file at `path` (defaults where None) and `a.b=value` overrides.

    Values of overrides are YAML: `chunk.fps=10`, `videos.limit=null`, `annotations.exclude=[a.txt, b.txt]`.
    """
    tree = read_yaml(Path(path)) if path is not None else {}
    for override in overrides:
        _set(tree, override)
    return from_dict(cls, tree)


def from_dict(cls: type[T], tree: Mapping[str, Any]) -> T:
    """Return `cls` filled from nested mappings; raise `ConfigError` on unknown keys, wrong types and bad values."""
    _reject_unknown(cls, tree, prefix="")
    try:
        # JSON mode is strict about types, yet lets text be a Path and a list a tuple, as YAML needs.
        return pydantic.TypeAdapter(cls).validate_json(json.dumps(tree, default=str), strict=True)
    except pydantic.ValidationError as error:
        lines = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"])
            value = "" if isinstance(problem["input"], Mapping) else f" = {problem['input']!r}"
            lines.append(f"{key}{value}: {problem['msg']}")
        raise ConfigError("; ".join(lines)) from None


def to_dict(config: Any) -> dict[str, Any]:
    """Return a configuration as plain nested dicts, lists, numbers and text (paths as text)."""
    return typing.cast(dict[str, Any], pydantic.TypeAdapter(type(config)).dump_python(config, mode="json"))


def to_yaml(config: Any) -> str:
    """Return a configuration as YAML that `load` reads back to an equal one."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file; raise `ConfigError` where it is absent, malformed or no mapping."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such configuration file") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a mapping of keys to values is expected, this is a {type(tree).__name__}")
    return tree


def known_keys(cls: type, prefix: str = "") -> Iterator[str]:
    """Yield every dotted key of a configuration class, sections included."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        name = prefix + field.name
        yield name
        section = _section(hints[field.name])
        if section is not None:
            yield from known_keys(section, name + ".")


def _section(hint: Any) -> type | None:
    """Return the dataclass that a type hint stands for, also behind `| None`; None for a plain value."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        found = [arg for arg in typing.get_args(hint) if dataclasses.is_dataclass(arg)]
        return found[0] if len(found) == 1 else None  # type: ignore[return-value]
    return hint if dataclasses.is_dataclass(hint) else None  # type: ignore[return-value]


def _reject_unknown(cls: type, tree: Mapping[str, Any], *, prefix: str, root: type | None = None) -> None:
    root = root or cls
    hints = typing.get_type_hints(cls)
    for key, value in tree.items():
        if key not in hints:
            name = f"{prefix}{key}"
            near = difflib.get_close_matches(name, list(known_keys(root)), n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(hints)}"
            raise ConfigError(f"unknown key {name} = {value!r}{hint}")
        section = _section(hints[key])
        if section is not None and isinstance(value, Mapping):
            _reject_unknown(section, value, prefix=f"{prefix}{key}.", root=root)


def _set(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r}: an override has the form key=value, as in chunk.fps=10")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{override!r}: the value is not valid YAML: {error}") from None
    *sections, last = key.split(".")
    for section in sections:
        inner = tree.setdefault(section, {})
        if inner is None:
            inner = tree[section] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"{override!r}: {section} is the value {inner!r}, it has no keys inside")
        tree = inner
    tree[last] = value
