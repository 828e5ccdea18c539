"""The documentation agrees with the code: links, paths, function names, configuration keys, imports of examples."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import re
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from eval.config import EvalConfig
from hiervl_train.config import PretrainConfig
from hiervl_train.features.config import ExtractConfig
from hiervl_train.tasks.config import FinetuneConfig
from preprocessing.config import BuildConfig
from tests.paths import REPOSITORY
from tools import check_docs

PAGES = check_docs.pages(REPOSITORY)
CURRENT = [page for page in PAGES if page.name != "CHANGELOG.md"]  # that one names what is gone, too
CONFIGS = (BuildConfig, PretrainConfig, FinetuneConfig, EvalConfig, ExtractConfig)
FILES = ("safetensors", "json", "jsonl", "yaml", "py", "md", "html", "pth", "parquet")
DOTTED = re.compile(r"(?<![\w./-])([a-z][a-z_0-9]*(?:\.[a-z][a-z_0-9]*)+)(?![\w(.])")
OLD_KEYS = re.compile(
    r"`(checkpoint\.\w+|text\.(?:tokenizer|buckets)|\w*_per_pass|max_(?:skipped|failed)_run|wait_share|optim\.coast)\b"
)
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())


def keys(cls: type, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of a configuration class, sections included."""
    for name, hint in typing.get_type_hints(cls).items():
        yield prefix + name
        for part in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(part) and isinstance(part, type):
                yield from keys(part, f"{prefix}{name}.")


@cache
def known_keys() -> tuple[frozenset[str], frozenset[str]]:
    """Return all keys of all configurations, and the names of their sections."""
    found = frozenset(key for cls in CONFIGS for key in keys(cls))
    return found, frozenset(key.split(".")[0] for key in found if "." in key)


@each_page
def test_links_paths_and_names_resolve(page: Path) -> None:
    assert not list(check_docs.check_page(REPOSITORY, page))


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.name)
def test_configuration_keys_exist(page: Path) -> None:
    found, sections = known_keys()
    assert sections >= {"data", "sample", "speed", "save", "tokenizer"}, "docs/commands.md explains these"
    text = re.sub(r"```python\n.*?```", "", page.read_text(), flags=re.S)
    named = {key for key in DOTTED.findall(text) if key.split(".")[0] in sections and key.split(".")[-1] not in FILES}
    assert not named - found


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.name)
def test_renamed_keys_are_gone(page: Path) -> None:
    assert not OLD_KEYS.findall(page.read_text())


@each_page
def test_imports_in_examples_exist(page: Path) -> None:
    for source in re.findall(r"```python\n(.*?)```", page.read_text(), re.S):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.module:
                module: Any = importlib.import_module(node.module)
                missing = [alias.name for alias in node.names if not _has(module, node.module, alias.name)]
                assert not missing, f"{node.module} has no {missing}"


def _has(module: Any, dotted: str, name: str) -> bool:
    return hasattr(module, name) or importlib.util.find_spec(f"{dotted}.{name}") is not None
