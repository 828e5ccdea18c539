"""Reads a YAML file and `key=value` overrides into a typed, frozen dataclass, and writes one back.

Bounds of a single value belong into its type (`Annotated[int, Field(ge=1)]`), checks across fields into
`__post_init__`. An unknown key, a wrong type or a value out of bounds is a `ConfigError` that names the key, the value
and what would be right. `configs.help` lists the keys of a configuration.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pydantic
import yaml

T = TypeVar("T")
_NULLS = ("", "null", "Null", "NULL", "~")


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key, the value and what would be right."""

    exit_code: ClassVar[int] = 2


def load(cls: type[T], path: str | Path | None = None, overrides: Sequence[str] = ()) -> T:
    """Return `cls` filled from the YAML file at `path` (defaults where None) and `a.b=value` overrides.

    Values of overrides are YAML: `chunk.fps=10`, `videos.limit=null`, `annotations.exclude=[a.txt, b.txt]`. Where the
    key holds text or a path, the value is taken literally: `videos.pattern=*.mp4`.
    """
    tree = read_yaml(Path(path)) if path is not None else {}
    return from_dict(cls, overridden(cls, tree, overrides))


def overridden(cls: type, tree: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return the nested mappings `tree` with `a.b=value` overrides of `cls` applied."""
    changed = copy.deepcopy(dict(tree))
    for override in overrides:
        _set(cls, changed, override)
    return changed


def merged(tree: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested mappings with the keys of both; those of `other` count more."""
    inner = {
        key: merged(tree[key], value) if isinstance(value, Mapping) and isinstance(tree.get(key), Mapping) else value
        for key, value in other.items()
    }
    return {**tree, **inner}


def from_dict(cls: type[T], tree: Mapping[str, Any]) -> T:
    """Return `cls` filled from nested mappings; raise `ConfigError` on unknown keys, wrong types and bad values."""
    _reject_unknown(cls, tree, prefix="", root=cls)
    try:
        # JSON mode is strict about types, yet accepts text for a Path and a list for a tuple, as YAML needs.
        text = json.dumps(_with_section_defaults(cls, tree), default=str)
        return pydantic.TypeAdapter(cls).validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        raise ConfigError("; ".join(_describe(cls, problem) for problem in error.errors())) from None


def to_dict(config: Any) -> dict[str, Any]:
    """Return a configuration as plain nested dicts, lists, numbers and text (paths as text)."""
    return typing.cast(dict[str, Any], pydantic.TypeAdapter(type(config)).dump_python(config, mode="json"))


def to_yaml(config: Any) -> str:
    """Return a configuration as YAML that `load` reads back to an equal one."""
    return yaml.dump(to_dict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file; raise `ConfigError` where it is absent, malformed or no mapping."""
    try:
        tree = _parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values, found {type(tree).__name__}")
    return tree


def known_keys(cls: type, prefix: str = "") -> Iterator[str]:
    """Yield every dotted key of a configuration class, sections included."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        name = prefix + field.name
        yield name
        section = section_of(hints[field.name])
        if section is not None:
            yield from known_keys(section, name + ".")


def hint_of(cls: type, key: str) -> Any:
    """Return the type of a dotted key, with its bounds (`Annotated`); None for a key that `cls` does not have."""
    first, _, rest = key.partition(".")
    hint = typing.get_type_hints(cls, include_extras=True).get(first)
    if not rest or hint is None:
        return hint
    section = section_of(hint)
    return hint_of(section, rest) if section is not None else None


def section_of(hint: Any) -> type | None:
    """Return the dataclass that a type hint means, also behind `| None` or `Annotated`; None for a plain value."""
    found = [arg for arg in alternatives(hint) if dataclasses.is_dataclass(arg)]
    return typing.cast(type, found[0]) if len(found) == 1 else None


def alternatives(hint: Any) -> tuple[Any, ...]:
    """Return the types that a hint allows, without their bounds: `(int, NoneType)` of `Annotated[int, …] | None`."""
    if typing.get_origin(hint) is typing.Annotated:
        return alternatives(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(inner for arg in typing.get_args(hint) for inner in alternatives(arg))
    return (hint,)


def _describe(cls: type, problem: Any) -> str:
    """Return one problem that pydantic found as `key = value: what is wrong`."""
    parts: list[str] = []
    for part in problem["loc"]:  # pydantic also names the member of a union: `img_size.int`
        if isinstance(part, int) or hint_of(cls, ".".join([*parts, str(part)])) is not None:
            parts.append(str(part))
    key, value = ".".join(parts), problem["input"]
    is_section = isinstance(value, Mapping) and (not key or section_of(hint_of(cls, key)) is not None)
    found = "" if is_section or problem["type"] == "missing" else f" = {value!r}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key}{found}: {message}" if key else message


def _with_section_defaults(cls: type, tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tree whose given sections keep the defaults of their field where these are not those of their class.

    `run: RunConfig = field(default_factory=lambda: RunConfig(folder=…))` keeps its folder where only `run.seed` is
    given.
    """
    hints = typing.get_type_hints(cls)
    filled = dict(tree)
    for field in dataclasses.fields(cls):
        section, given = section_of(hints[field.name]), tree.get(field.name)
        if section is None or not isinstance(given, Mapping):
            continue
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        own: dict[str, Any] = {}
        if isinstance(default, section) and default != (plain := section()):
            usual = to_dict(plain)
            own = {name: value for name, value in to_dict(default).items() if value != usual[name]}
        filled[field.name] = own | _with_section_defaults(section, given)
    return filled


def _reject_unknown(cls: type, tree: Mapping[str, Any], *, prefix: str, root: type) -> None:
    hints = typing.get_type_hints(cls)
    names = {field.name for field in dataclasses.fields(cls)}
    for key, value in tree.items():
        if key not in names:
            name = f"{prefix}{key}"
            while isinstance(value, Mapping) and value:  # an unknown section: name one of the keys that were given
                first = next(iter(value))
                name, value = f"{name}.{first}", value[first]
            near = _other_name(root, name) or " or ".join(_nearest(name, list(known_keys(root))))
            hint = f"; did you mean {near}?" if near else f"; known here: {', '.join(sorted(names))}"
            raise ConfigError(f"unknown key {name} = {value!r}{hint}")
        section = section_of(hints[key])
        if section is not None and isinstance(value, Mapping):
            _reject_unknown(section, value, prefix=f"{prefix}{key}.", root=root)


def _other_name(cls: type, key: str) -> str:
    """Return what `cls.OTHER_NAMES`, if there is one, says of a name that other commands give to one of its keys."""
    names: Mapping[str, str] = getattr(cls, "OTHER_NAMES", {})
    return names.get(key, "")


def _nearest(key: str, known: Sequence[str]) -> list[str]:
    """Return the known keys most like an unknown one: as a whole, or by its last part (`lr` → `optim.lr`)."""
    last = key.rpartition(".")[2]
    by_last: dict[str, list[str]] = {}
    for name in known:
        by_last.setdefault(name.rpartition(".")[2], []).append(name)
    if last in by_last:
        return difflib.get_close_matches(key, by_last[last], n=3, cutoff=0.0)
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return close or [by_last[near][0] for near in difflib.get_close_matches(last, by_last, n=1, cutoff=0.75)]


def _set(cls: type, tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r}: an override has the form key=value")
    value = _value(override, text, is_text=_is_text(hint_of(cls, key)))
    *sections, last = key.split(".")
    for section in sections:
        inner = tree.setdefault(section, {})
        if inner is None:
            inner = tree[section] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"{override!r}: {section} is the value {inner!r} and has no keys inside")
        tree = inner
    tree[last] = value


def _value(override: str, text: str, *, is_text: bool) -> Any:
    """Return the value of an override: YAML, or for a key that holds text the text itself unless quoted or null."""
    if is_text and text.strip() in _NULLS:
        return None
    try:
        value = _parse(text)
    except (yaml.YAMLError, ValueError) as error:
        if is_text:
            return text
        raise ConfigError(f"{override!r}: the value is not valid YAML: {error}") from None
    is_marked = text.lstrip()[:1] in ("'", '"', "[", "{")  # as YAML marks text and what is no text
    return value if is_marked or not is_text else text


def _is_text(hint: Any) -> bool:
    """Return whether a key holds text or a path and nothing else but null."""
    kinds = {kind for kind in alternatives(hint) if kind is not type(None)}
    return bool(kinds) and kinds <= {str, Path}


class _Loader(yaml.SafeLoader):
    """YAML with the scalars of version 1.2: `3e-5` is a number; `yes`, `12:30:00` and dates are text."""


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads back: text that it would take for a number is quoted."""


def _construct_int(loader: yaml.SafeLoader, node: yaml.Node) -> int:
    text = str(loader.construct_scalar(typing.cast(yaml.ScalarNode, node))).replace("_", "")
    return int(text, 0) if text[:2] in ("0x", "0o") else int(text)


_SCALARS: tuple[tuple[str, str, str], ...] = (  # tag, pattern, possible first characters
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("merge", r"<<", "<"),
)
for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {}
    for _tag, _pattern, _first in _SCALARS:
        _firsts = [*_first, ""] if _tag == "null" else list(_first)
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _firsts)
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def _parse(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)  # noqa: S506  # derived from SafeLoader
