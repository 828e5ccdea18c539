"""Converts parsed JSON to typed dataclasses and back, checking every field on the way in."""

from __future__ import annotations

import dataclasses
import functools
import math
import reprlib
import typing
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, TypeVar

T = TypeVar("T")
_Parser = Callable[[Any], Any]
_REPR = reprlib.Repr()  # of values in messages: a few hundred characters at most, whatever a hostile file holds
_REPR.maxlevel = 2


class TypedJsonError(ValueError):
    """A JSON value without the declared type; `path` is its place, such as `.questions[0].answer`."""

    def __init__(self, problem: str, path: str = "") -> None:
        super().__init__(problem)
        self.problem, self.path = problem, path

    def __str__(self) -> str:
        return f"{self.path.removeprefix('.')}: {self.problem}" if self.path else self.problem


def parse(cls: type[T], value: Any) -> T:
    """Return a parsed JSON value as an instance of the dataclass `cls`.

    Fields may be `str`, `int`, `float`, `Literal` of strings, dataclasses, and lists, tuples and string-keyed dicts of
    these. Types must match exactly: an integer is no `float`, and `true` is no `int`. Fields with a default may be
    absent; unknown fields, infinities, integers beyond 64 bits and lone surrogates are errors. Raises `TypedJsonError`.

        parse(Question, {"id": "7", "type": "inter", "text": "#C C cuts", "answer": 0, "choices": ["a", "b"]})
    """
    parser: _Parser = _parser(typing.cast(Any, cls))
    return typing.cast(T, parser(value))


def dump(value: Any) -> Any:
    """Return a dataclass as a JSON-ready dict, its fields in the order of definition and tuples as lists.

    An empty list or dict that is its field's default by a factory is left out.
    """
    if isinstance(value, (list, tuple)):
        return [dump(item) for item in value]
    if dataclasses.is_dataclass(value):  # dataclasses.asdict copies every string and takes ten times as long
        optional = _made_by_default(typing.cast(type, type(value)))
        return {
            name: dump(item)
            for name in field_types(type(value))
            if (item := getattr(value, name)) or name not in optional
        }
    return value


def field_types(cls: type) -> Mapping[str, Any]:
    """Return name → type of a dataclass's fields in order, with `Annotated` removed."""
    return _field_types(cls)


@functools.cache
def _field_types(cls: type) -> Mapping[str, Any]:
    return MappingProxyType(typing.get_type_hints(cls))


@functools.cache
def _made_by_default(cls: type) -> frozenset[str]:
    """Return the names of the fields whose default a factory makes."""
    return frozenset(f.name for f in dataclasses.fields(cls) if f.default_factory is not dataclasses.MISSING)


@functools.cache
def _parser(hint: Any) -> _Parser:
    """Return the function that checks and converts values of a type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _object_parser(typing.cast(type, hint))
    if origin in (list, tuple):
        return _sequence_parser(origin, _parser(arguments[0]))
    if origin is dict:
        return _dict_parser(_parser(arguments[1]))
    if origin is Literal:
        return functools.partial(_parse_literal, arguments)
    if hint in (str, int, float):
        return functools.partial(_parse_scalar, hint)
    raise TypeError(f"{hint}: JSON values of this type are not supported")


def _object_parser(cls: type) -> _Parser:
    fields = {name: (f".{name}", _parser(hint)) for name, hint in field_types(cls).items()}
    required = {
        field.name
        for field in dataclasses.fields(cls)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }

    def parse_object(value: Any) -> Any:
        if not isinstance(value, dict):
            raise TypedJsonError(f"an object is expected, not {_REPR.repr(value)}")
        missing, unknown = required - value.keys(), value.keys() - fields.keys()
        if missing or unknown:
            raise TypedJsonError(f"missing fields {sorted(missing)}, unknown fields {_REPR.repr(sorted(unknown))}")
        return cls(**{name: _at(*fields[name], item) for name, item in value.items()})

    return parse_object


def _dict_parser(parser: _Parser) -> _Parser:
    def parse_dict(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise TypedJsonError(f"an object is expected, not {_REPR.repr(value)}")
        return {name: _at(f".{_REPR.repr(name)}", parser, item) for name, item in value.items()}

    return parse_dict


def _sequence_parser(kind: Callable[[Any], Any], parser: _Parser) -> _Parser:
    def parse_sequence(value: Any) -> Any:
        if not isinstance(value, list):
            raise TypedJsonError(f"a list is expected, not {_REPR.repr(value)}")
        try:
            return kind(map(parser, value))
        except TypedJsonError:
            # Found again with its index: building the path of each item would take longer than checking it.
            return [_at(f"[{index}]", parser, item) for index, item in enumerate(value)]

    return parse_sequence


def _at(place: str, parser: _Parser, value: Any) -> Any:
    """Return the parsed value; prepend its place to the path of an error."""
    try:
        return parser(value)
    except TypedJsonError as error:
        raise TypedJsonError(error.problem, place + error.path) from None


def _parse_literal(choices: tuple[str, ...], value: Any) -> Any:
    if value not in choices:
        raise TypedJsonError(f"one of {', '.join(choices)} is expected, not {_REPR.repr(value)}")
    return value


def _parse_scalar(kind: Any, value: Any) -> Any:
    if type(value) is not kind:
        raise TypedJsonError(f"{kind.__name__} is expected, not {_REPR.repr(value)} ({type(value).__name__})")
    if kind is float and not math.isfinite(value):
        raise TypedJsonError(f"a finite number is expected, not {value!r}")
    if kind is int and not -(2**63) <= value < 2**63:
        raise TypedJsonError(f"{_REPR.repr(value)} does not fit in 64 bits")
    if kind is str and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            problem = f"{_REPR.repr(value)} holds a lone surrogate, which UTF-8 cannot represent"
            raise TypedJsonError(problem) from None
    return value
