"""An extension of Griffe: a field's comment, trailing or on the lines before it, is its documentation.

The packages describe the fields of their dataclasses in comments, from which `--help` is made, too.
"""

from __future__ import annotations

import ast
import tokenize
from functools import cache
from pathlib import Path
from typing import Any

import griffe


class FieldComments(griffe.Extension):
    """Gives attributes without a docstring the comment that describes them."""

    def on_attribute_instance(
        self, *, node: ast.AST | griffe.ObjectNode, attr: griffe.Attribute, agent: Any, **kwargs: Any
    ) -> None:
        """Read the comment of an attribute that was parsed from source."""
        if attr.docstring is None and attr.lineno and attr.endlineno and isinstance(attr.filepath, Path):
            text = comment(attr.filepath, attr.lineno, attr.endlineno)
            if text:
                attr.docstring = griffe.Docstring(text, lineno=attr.lineno, parent=attr)


def comment(path: Path, first: int, last: int) -> str:
    """Return the comment at the end of line `last`, else that of the whole lines directly before line `first`."""
    comments, whole = _comments(path)
    if last in comments and last not in whole:
        return comments[last]
    lines = []
    while first - 1 in whole:
        first -= 1
        lines.append(comments[first])
    return " ".join(reversed(lines))


@cache
def _comments(path: Path) -> tuple[dict[int, str], frozenset[int]]:
    """Return line → comment of a file, and the lines that have nothing but a comment."""
    found: dict[int, str] = {}
    whole = set()
    with tokenize.open(path) as file:
        for token in tokenize.generate_tokens(file.readline):
            text = token.string.lstrip("# ").strip()
            if token.type == tokenize.COMMENT and not text.startswith(("type:", "noqa", "fmt:")):
                found[token.start[0]] = text
                if not token.line[: token.start[1]].strip():
                    whole.add(token.start[0])
    return found, frozenset(whole)
