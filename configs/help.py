"""Lists every key of a configuration with type, default and meaning: the `--help` of every command.

The meaning of a key is the comment of its field in the source: behind the field, on the lines directly above it, or
both; `Field(description=…)` or a string directly below the field do as well.

    @dataclass(frozen=True, kw_only=True)
    class OptimConfig:
        \"\"\"AdamW.\"\"\"

        lr: PositiveFloat = 3e-5  # peak learning rate

    print_keys(OptimConfig, Console())  # lr=3e-05 … float > 0 … peak learning rate
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import io
import re
import textwrap
import tokenize
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import annotated_types
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.text import Text

from configs.loading import alternatives, section_of, to_dict

_DIRECTIVE = re.compile(r"#\s*(?:noqa|type:|pyright:|mypy:|fmt:|ruff:).*")
_NAMES: dict[Any, str] = {bool: "true | false", str: "text", Path: "path", type(None): "null", Any: "anything"}
_WIDTHS = (60, 110)  # columns: the least and the most that the list uses


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key of a configuration."""

    name: str  # dotted
    type: str  # readable: `int ≥ 1`, `rgb | bgr`, `path or null`
    default: str | None  # as one would type it; None: required
    meaning: str  # empty where the field has no comment


@dataclass(frozen=True, kw_only=True)
class Section:
    """The keys of one dataclass in the tree."""

    name: str  # dotted; empty at the top
    meaning: str
    keys: tuple[Key, ...]
    is_null: bool = False  # whether the whole section is null by default


def sections(cls: type, defaults: Any = None) -> Iterator[Section]:
    """Yield the sections of a configuration class from the top down.

    `defaults`: an instance of `cls` whose values are shown as defaults; None: those of the class.
    """
    yield from _sections(cls, to_dict(defaults) if defaults is not None else None, name="", meaning="")


def keys(cls: type, defaults: Any = None) -> Iterator[Key]:
    """Yield every key that holds a value, section by section."""
    for section in sections(cls, defaults):
        yield from section.keys


def print_keys(cls: type, console: Console, defaults: Any = None) -> None:
    """Print every key, grouped by section, for terminals of 60 columns and more."""
    width = min(max(console.width, _WIDTHS[0]), _WIDTHS[1])
    for section in sections(cls, defaults):
        title = Text(section.name or "General", style="bold underline")
        if section.is_null:
            title.append(" (null unless a key is given)", style="not bold not underline")
        console.print()
        console.print(title)
        console.print(_wrapped(section.meaning, width, indent=2), end="")
        for key in section.keys:
            head = Text.assemble("  ", (f"{key.name}=", "bold"), (_shorten(key.default), "cyan"))
            room = width - head.cell_len - len(key.type)
            head.append(" " * room if room >= 2 else "\n" + " " * max(4, width - len(key.type)))
            head.append(key.type, style="green")
            console.print(head, soft_wrap=True)
            console.print(_wrapped(key.meaning, width, indent=6), end="")


def describe_type(hint: Any) -> str:
    """Return a type as one would say it: `int ≥ 1`, `rgb | bgr`, `path or null`, `list of int`."""
    return _describe(hint, ())


def choices(hint: Any) -> tuple[str, ...]:
    """Return the values that a key may have where they can be listed, for completion; else nothing."""
    found: list[str] = []
    for kind in alternatives(hint):
        if typing.get_origin(kind) is typing.Literal:
            found += [_scalar(value) for value in typing.get_args(kind)]
        elif kind is bool:
            found += ["true", "false"]
        elif kind is type(None):
            found.append("null")
    return tuple(found)


@functools.cache
def field_comments(cls: type) -> dict[str, str]:
    """Return what the source says of each field of a dataclass, inherited ones included; {} without a source."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if "__dataclass_fields__" not in vars(base):
            continue
        try:
            source = textwrap.dedent(inspect.getsource(base))
        except (OSError, TypeError):
            continue
        tree = ast.parse(source).body[0]
        assert isinstance(tree, ast.ClassDef)
        comments = _comments(source)
        for number, node in enumerate(tree.body):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                below = tree.body[number + 1] if number + 1 < len(tree.body) else None
                meaning = _meaning(node, comments) or _docstring(below)
                if meaning or node.target.id not in found:
                    found[node.target.id] = meaning
    return found


def _sections(cls: type, defaults: Mapping[str, Any] | None, *, name: str, meaning: str) -> Iterator[Section]:
    hints = typing.get_type_hints(cls, include_extras=True)
    values = defaults if defaults is not None else _class_defaults(cls)
    comments = field_comments(cls)
    prefix = f"{name}." if name else ""
    own: list[Key] = []
    inner: list[Iterator[Section]] = []
    for field in _own_first(cls):
        hint, key = hints[field.name], prefix + field.name
        said = _description(hint) or comments.get(field.name, "")
        section = section_of(hint)
        if section is not None:
            inner.append(_sections(section, values.get(field.name), name=key, meaning=said))
            continue
        default = _format(values[field.name]) if field.name in values else None
        own.append(Key(name=key, type=describe_type(hint), default=default, meaning=said))
    first = (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " ") if name else ""
    whole = " ".join(part[:1].upper() + part[1:].rstrip(".") + "." for part in (first, meaning) if part)
    if own:
        yield Section(name=name, meaning=whole, keys=tuple(own), is_null=bool(name) and defaults is None)
    for each in inner:
        yield from each


def _own_first(cls: type) -> list[dataclasses.Field[Any]]:
    """Return the fields of a dataclass, those that it declares itself before those that it inherits."""
    declared = {
        name: depth for depth, base in reversed(list(enumerate(cls.__mro__))) for name in inspect.get_annotations(base)
    }
    return sorted(dataclasses.fields(cls), key=lambda field: declared[field.name])


def _class_defaults(cls: type) -> dict[str, Any]:
    """Return the defaults of the fields that have one, as plain values."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        if field.default is not dataclasses.MISSING:
            found[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = field.default_factory()
    return {name: to_dict(value) if dataclasses.is_dataclass(value) else value for name, value in found.items()}


def _comments(source: str) -> dict[int, tuple[str, bool]]:
    """Return line → (comment, whether the line has nothing else); lines count from 1."""
    lines = source.splitlines()
    found: dict[int, tuple[str, bool]] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            text = _DIRECTIVE.sub("", token.string).lstrip("#").strip()
            if text:
                found[token.start[0]] = text, lines[token.start[0] - 1].lstrip().startswith("#")
    return found


def _meaning(node: ast.AnnAssign, comments: Mapping[int, tuple[str, bool]]) -> str:
    """Return the comment lines directly above a field and the comments on its own lines, as one text."""
    above: list[str] = []
    line = node.lineno - 1
    while line in comments and comments[line][1]:
        above.insert(0, comments[line][0])
        line -= 1
    own = [comments[line][0] for line in range(node.lineno, (node.end_lineno or node.lineno) + 1) if line in comments]
    first, second = " ".join(above), " ".join(own)
    if first and second and not first.endswith((".", ":", ";", ",")):
        first += "."
    return f"{first} {second}".strip()


def _docstring(node: ast.stmt | None) -> str:
    """Return the text of a string that stands by itself; empty for any other statement."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return " ".join(node.value.value.split())
    return ""


def _description(hint: Any) -> str:
    for info in _metadata(hint):
        if isinstance(info, FieldInfo) and info.description:
            return " ".join(info.description.split())
    return ""


def _metadata(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint)[1:] if typing.get_origin(hint) is typing.Annotated else ()


def _describe(hint: Any, bounds: tuple[Any, ...]) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _describe(arguments[0], (*bounds, *_flatten(arguments[1:])))
    if len(alternatives(hint)) > 1:
        told = [_describe(argument, bounds) for argument in arguments if argument is not type(None)]
        return " or ".join(told + ["null"] * (type(None) in arguments))
    text = _plain(hint, origin, arguments)
    limits = ", ".join(limit for bound in bounds if (limit := _bound(bound, is_int=hint is int)))
    return f"{text} {limits}".strip()


def _plain(hint: Any, origin: Any, arguments: tuple[Any, ...]) -> str:
    if origin is typing.Literal:
        return " | ".join(_scalar(value) for value in arguments)
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"[{', '.join(_describe(argument, ()) for argument in arguments)}]"
    if origin in (tuple, list, frozenset, set):
        inner = _describe(arguments[0], ())
        return f"list of {f'({inner})' if ' ' in inner else inner}"
    if origin is dict or hint is dict:
        return "mapping"
    return _NAMES[hint] if hint in _NAMES else str(getattr(hint, "__name__", hint))


def _flatten(metadata: Iterable[Any]) -> Iterator[Any]:
    for info in metadata:
        if isinstance(info, FieldInfo):
            yield from info.metadata
        else:
            yield info


def _bound(bound: Any, *, is_int: bool) -> str:
    match bound:
        case annotated_types.Gt(gt=limit) if is_int:
            return f"≥ {typing.cast(int, limit) + 1}"
        case annotated_types.Gt(gt=limit):
            return f"> {limit}"
        case annotated_types.Ge(ge=limit):
            return f"≥ {limit}"
        case annotated_types.Lt(lt=limit):
            return f"< {limit}"
        case annotated_types.Le(le=limit):
            return f"≤ {limit}"
        case annotated_types.MultipleOf(multiple_of=step):
            return f"multiple of {step}"
        case annotated_types.MinLen(min_length=length):
            return f"with at least {length}"
    return ""


def _format(value: Any) -> str:
    """Return a default as one would type it behind `key=`."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_format(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_format(inner) for inner in value) + "]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    is_plain = text == text.strip() != "" or not isinstance(value, str)
    return text if is_plain else f'"{text}"'


def _wrapped(text: str, width: int, *, indent: int) -> Text:
    """Return text in lines of at most `width` columns, each ended by a line break; empty for no text."""
    margin = " " * indent
    lines = textwrap.wrap(text, width, initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False)
    return Text("".join(f"{line}\n" for line in lines))


def _shorten(default: str | None) -> str:
    if default is None:
        return "… (required)"
    return default if len(default) <= _WIDTHS[0] else f"{default[: _WIDTHS[0] - 2]} …"
