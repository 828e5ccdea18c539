"""Checks the documentation: links, anchors, and every file, module and function that it names.

    python tools/check_docs.py                   # README.md, CONTRIBUTING.md, CHANGELOG.md and docs/
    python tools/check_docs.py --site build/docs   # also the built site: internal links, and no asset from elsewhere

Needs only Python; makes no network request. Exit code 0: nothing found, 1: problems, one a line.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_REPOSITORY = Path(__file__).resolve().parent.parent
_FOLDERS = (
    "configs", "shards", "preprocessing", "hiervl_train", "eval", "cluster", "tests", "benchmarks", "tools", "examples",
    "docs",
)  # fmt: skip
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")
_HTML_LINK = re.compile(r"""\b(?:href|src)=["']([^"']+)["']""")
_HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.M)
_FENCE = re.compile(r"^( *)(```|~~~).*?^\1\2\s*$", re.M | re.S)
_PATH = re.compile(
    rf"(?<![\w./-])(?:{'|'.join(_FOLDERS)})/[\w./-]*?(?:\.(?:py|ya?ml|sh|sbatch|md|json|toml|png)|/)(?=[^\w/]|$)"
)
_PYTHON = re.compile(r"`([\w/-]+\.py)(?::([A-Za-z_][\w.]*))?`")
_QUALIFIED = re.compile(r"(?<![\w./-])([\w/-]+\.py):([A-Za-z_][\w.]*)")
_MODULE = re.compile(rf"\bpython3? -m ((?:{'|'.join(_FOLDERS)})(?:\.\w+)*)")


def main(argv: Sequence[str] | None = None) -> int:
    """Check the documentation; return 0 if it holds together, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="check_docs.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--root", type=Path, default=_REPOSITORY, help="the repository (default: this one)")
    parser.add_argument("--site", type=Path, help="a folder with the built site")
    arguments = parser.parse_args(argv)
    problems = [problem for page in pages(arguments.root) for problem in check_page(arguments.root, page)]
    if arguments.site:
        problems += check_site(arguments.site)
    print("\n".join(problems) or "documentation: links, paths and names resolve")
    return 1 if problems else 0


def pages(root: Path) -> list[Path]:
    """Return the Markdown files of the documentation."""
    names = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
    return [root / name for name in names if (root / name).exists()] + sorted((root / "docs").rglob("*.md"))


def check_page(root: Path, page: Path) -> Iterator[str]:
    """Yield a line for each broken link, path, module or function that a Markdown file names."""
    text = page.read_text(encoding="utf-8")
    shown = page.relative_to(root)
    prose = _FENCE.sub("", text)
    for target in [*_LINK.findall(prose), *_HTML_LINK.findall(prose)]:
        yield from (f"{shown}: {problem}" for problem in _check_link(page, target))
    for path in sorted(set(_PATH.findall(text))):
        if not (root / path).exists():
            yield f"{shown}: {path} does not exist"
    for path, name in sorted({*_PYTHON.findall(text), *_QUALIFIED.findall(text)}):
        yield from (f"{shown}: {problem}" for problem in _check_python(root, path, name))
    for module in sorted(set(_MODULE.findall(text))):
        file = root.joinpath(*module.split("."))
        if not file.with_suffix(".py").exists() and not (file / "__main__.py").exists():
            yield f"{shown}: python -m {module}: no such module"


def _check_link(page: Path, target: str) -> Iterator[str]:
    parts = urlsplit(target)
    if parts.scheme or parts.netloc:
        return
    file = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if not file.exists():
        yield f"broken link {target}"
    elif parts.fragment and file.suffix == ".md" and parts.fragment not in _anchors(file):
        yield f"broken anchor {target}"


@cache
def _anchors(page: Path) -> frozenset[str]:
    headings = _HEADING.findall(_FENCE.sub("", page.read_text(encoding="utf-8")))
    return frozenset(slug(heading) for heading in headings)


def slug(heading: str) -> str:
    """Return the anchor of a heading, as GitHub and Python-Markdown make it from ASCII text."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading.replace("`", ""))).strip("-").lower()


def _check_python(root: Path, path: str, name: str) -> Iterator[str]:
    files = [file for file in _python_files(root) if f"/{file.relative_to(root).as_posix()}".endswith(f"/{path}")]
    if not files:
        yield f"{path} does not exist"
    elif name and not any(name in defined(file) for file in files):
        yield f"{path} defines no {name}"


@cache
def _python_files(root: Path) -> tuple[Path, ...]:
    return tuple(file for folder in _FOLDERS for file in sorted((root / folder).rglob("*.py")))


@cache
def defined(file: Path) -> frozenset[str]:
    """Return the functions, classes, methods, fields and constants that a Python file defines: `f`, `C`, `C.m`, `X`."""
    found: set[str] = set()
    scopes: list[tuple[str, ast.Module | ast.ClassDef]] = [("", ast.parse(file.read_text(encoding="utf-8")))]
    for prefix, scope in scopes:
        for node in scope.body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                found.add(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                scopes.append((f"{prefix}{node.name}.", node))
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            found.update(prefix + target.id for target in targets if isinstance(target, ast.Name))
    return frozenset(found)


class _Page(HTMLParser):
    """What an HTML page links to and loads, and the anchors that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.assets: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value is not None}
        self.anchors.update(values[name] for name in ("id", "name") if name in values)
        is_loaded = tag != "a" and values.get("rel") not in ("canonical", "prev", "next", "alternate")
        for name in ("href", "src"):
            if name in values:
                (self.assets if is_loaded else self.links).append(values[name])


def check_site(site: Path) -> Iterator[str]:
    """Yield a line for each internal link of a built site that leads nowhere, and each asset loaded from elsewhere."""
    parsed: dict[Path, _Page] = {}
    for file in sorted(site.rglob("*.html")):
        parsed[file.resolve()] = page = _Page()
        page.feed(file.read_text(encoding="utf-8"))
    for file, page in parsed.items():
        shown = file.relative_to(site.resolve())
        if shown.name == "404.html":  # served at any depth, so its links are absolute
            continue
        yield from (f"{shown}: loads {asset} from elsewhere" for asset in page.assets if urlsplit(asset).netloc)
        for target in (*page.links, *page.assets):
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            linked = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            linked = linked / "index.html" if linked.is_dir() else linked
            anchor = unquote(parts.fragment)
            if not linked.exists():
                yield f"{shown}: broken link {target}"
            elif anchor and linked in parsed and anchor not in parsed[linked].anchors:
                yield f"{shown}: broken anchor {target}"


if __name__ == "__main__":
    sys.exit(main())
