"""Prints the shape of the code, package by package: sizes, docstrings, imports between packages and import cycles.

    python tools/structure.py                      # the working tree
    python tools/structure.py --rev v0.1 --rev HEAD --worktree      # side by side

Needs only Python and git. Imports inside functions and under `TYPE_CHECKING` count like any other.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import statistics
import subprocess
import sys
import tarfile
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

PACKAGES = ("configs", "shards", "preprocessing", "hiervl_train", "eval", "cluster")
_ALSO_COUNTED = ("tests", "benchmarks", "tools", "examples")
_NOT_CODE = frozenset(
    {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
)
_REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Module:
    """One Python file."""

    name: str  # dotted; a package's own name for its __init__.py
    path: str  # relative to the repository's root
    lines: int
    code_lines: int  # without blank lines, comments and docstrings
    functions: Mapping[str, int]  # qualified name → lines, decorators not counted
    public: frozenset[str]  # the module itself, its public classes, functions and methods
    undocumented: frozenset[str]  # those of `public` that have no docstring
    imports: frozenset[str]  # every dotted name that an import statement may refer to


@dataclass(frozen=True)
class PackageReport:
    """The figures of one top-level package."""

    modules: int
    lines: int
    code_lines: int
    functions: int
    median_function: float  # lines
    longest_function: int  # lines
    longest_name: str
    largest_module: int  # lines
    largest_name: str
    modules_per_folder: int  # in the fullest folder, __init__.py not counted
    fullest_folder: str
    public: int
    undocumented: int


def main(argv: Sequence[str] | None = None) -> int:
    """Print the figures of the revisions asked for."""
    parser = argparse.ArgumentParser(prog="structure.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rev", action="append", default=[], help="a git revision; repeat it for one column each")
    parser.add_argument("--worktree", action="store_true", help="add the working tree (the default without --rev)")
    parser.add_argument("--root", type=Path, default=_REPOSITORY, help="the repository (default: this one)")
    parser.add_argument("--undocumented", action="store_true", help="list the public names without a docstring")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    arguments = parser.parse_args(argv)
    columns: dict[str, str | None] = {revision: revision for revision in arguments.rev}
    if arguments.worktree or not columns:
        columns["working tree"] = None
    try:
        trees = {title: parse(read_sources(arguments.root, rev)) for title, rev in columns.items()}
    except subprocess.CalledProcessError as error:
        print(f"structure.py: {error.stderr.decode(errors='replace').strip()}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps({title: as_json(modules) for title, modules in trees.items()}, indent=2))
    else:
        print("\n".join(render(trees, list_undocumented=arguments.undocumented)))
    return 0


def read_sources(root: Path, revision: str | None = None) -> dict[str, str]:
    """Return path → source of every Python file of a git revision, or of the working tree (ignored files left out).

    Raises:
        subprocess.CalledProcessError: `root` is no git repository, or the revision does not exist.
    """
    if revision is None:
        listed = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.py")
        paths = [path for path in listed.decode().split("\0") if path and (root / path).is_file()]
        return {path: (root / path).read_text(encoding="utf-8") for path in paths}
    sources = {}
    with tarfile.open(fileobj=io.BytesIO(_git(root, "archive", "--format=tar", revision))) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.name.endswith(".py") else None
            if file is not None:
                sources[member.name] = file.read().decode("utf-8")
    return sources


def _git(root: Path, *arguments: str) -> bytes:
    return subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True).stdout


def parse(sources: Mapping[str, str]) -> dict[str, Module]:
    """Return name → module of every source file."""
    return {module.name: module for path, source in sorted(sources.items()) for module in [parse_module(path, source)]}


def parse_module(path: str, source: str) -> Module:
    """Measure one source file."""
    tree = ast.parse(source, path)
    public = dict(_public(tree))
    return Module(
        name=module_name(path),
        path=path,
        lines=len(source.splitlines()),
        code_lines=len(_code_lines(tree, source)),
        functions=dict(_functions(tree)),
        public=frozenset(public) if source.strip() else frozenset(),
        undocumented=frozenset(name for name, has in public.items() if not has) if source.strip() else frozenset(),
        imports=frozenset(_imports(tree, module_name(path), is_package=path.endswith("__init__.py"))),
    )


def module_name(path: str) -> str:
    """Return the dotted name of a file: `a/b.py` is `a.b`, `a/__init__.py` is `a`."""
    parts = PurePosixPath(path).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _code_lines(tree: ast.Module, source: str) -> set[int]:
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NOT_CODE:
            found.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and ast.get_docstring(node):
                found.difference_update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return found


def _functions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, int]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield f"{prefix}{child.name}", (child.end_lineno or child.lineno) - child.lineno + 1
        named = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        yield from _functions(child, f"{prefix}{child.name}." if named else prefix)  # type: ignore[attr-defined]  # named


def _public(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """Yield the public names of a module and whether each has a docstring; special methods are left out."""
    yield "(module)", ast.get_docstring(tree) is not None
    scopes: list[tuple[str, ast.Module | ast.ClassDef]] = [("", tree)]
    for prefix, scope in scopes:
        for node in scope.body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.name[0] != "_":
                yield prefix + node.name, ast.get_docstring(node) is not None
                if isinstance(node, ast.ClassDef):
                    scopes.append((f"{prefix}{node.name}.", node))


def _imports(tree: ast.Module, name: str, *, is_package: bool) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = name.split(".")[: len(name.split(".")) - node.level + is_package]
                base = ".".join([*parents, *([base] if base else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def import_graph(modules: Mapping[str, Module]) -> dict[str, set[str]]:
    """Return module → the modules of the same tree that it imports.

    `from a import b` is an import of `a.b` where that is a module, of `a` otherwise.
    """
    graph: dict[str, set[str]] = {}
    for name, module in modules.items():
        targets = {imported if imported in modules else imported.rpartition(".")[0] for imported in module.imports}
        graph[name] = {target for target in targets if target in modules and target != name}
    return graph


def cycles(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Return the strongly connected components of more than one module (Tarjan's algorithm), each sorted."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for target in sorted(graph.get(name, ())):
            if target not in index:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], index[target])
        if low[name] == index[name]:
            component: list[str] = []
            while not component or component[-1] != name:
                component.append(stack.pop())
            if len(component) > 1:
                found.append(sorted(component))

    for name in sorted(graph):
        if name not in index:
            visit(name)
    return sorted(found)


def arrows(graph: Mapping[str, Iterable[str]]) -> Counter[tuple[str, str]]:
    """Return (importing package, imported package) → number of pairs of modules, for packages of `PACKAGES`."""
    pairs = ((name.split(".")[0], target.split(".")[0]) for name, targets in graph.items() for target in targets)
    return Counter(pair for pair in pairs if pair[0] != pair[1] and set(pair) <= set(PACKAGES))


def folder_sizes(modules: Iterable[Module]) -> Counter[str]:
    """Return folder → number of its modules; `__init__.py` does not count."""
    paths = [PurePosixPath(module.path) for module in modules]
    found = Counter({str(path.parent): 0 for path in paths})
    found.update(str(path.parent) for path in paths if path.name != "__init__.py")
    return found


def report(modules: Mapping[str, Module], package: str) -> PackageReport | None:
    """Return the figures of a package, or None where it has no modules."""
    own = [module for module in modules.values() if module.path.split("/")[0] == package]
    if not own:
        return None
    functions = [(f"{module.path}:{name}", lines) for module in own for name, lines in module.functions.items()]
    longest = max(functions, key=lambda item: item[1], default=("-", 0))
    largest = max(own, key=lambda module: module.lines)
    folder, fullest = folder_sizes(own).most_common(1)[0]
    return PackageReport(
        modules=len(own),
        lines=sum(module.lines for module in own),
        code_lines=sum(module.code_lines for module in own),
        functions=len(functions),
        median_function=statistics.median(lines for _, lines in functions) if functions else 0,
        longest_function=longest[1],
        longest_name=longest[0],
        largest_module=largest.lines,
        largest_name=largest.path,
        modules_per_folder=fullest,
        fullest_folder=folder,
        public=sum(len(module.public) for module in own),
        undocumented=sum(len(module.undocumented) for module in own),
    )


_ROWS = (
    ("modules", "modules"),
    ("lines", "lines"),
    ("code lines", "code_lines"),
    ("functions", "functions"),
    ("median function, lines", "median_function"),
    ("longest function, lines", "longest_function"),
    ("largest module, lines", "largest_module"),
    ("modules in the fullest folder", "modules_per_folder"),
    ("public names", "public"),
    ("… without docstring", "undocumented"),
)
_NAMES = (
    ("longest function", "longest_name"),
    ("largest module", "largest_name"),
    ("fullest folder", "fullest_folder"),
)


def render(trees: Mapping[str, Mapping[str, Module]], *, list_undocumented: bool = False) -> Iterator[str]:
    """Yield the lines of the report, one column for each tree."""
    width = max(14, *(len(title) + 2 for title in trees))
    yield f"{'':32}" + "".join(f"{title:>{width}}" for title in trees)
    for package in (*PACKAGES, *_ALSO_COUNTED):
        reports = [report(modules, package) for modules in trees.values()]
        if not any(reports):
            continue
        yield package
        for label, field in _ROWS:
            values = ("-" if found is None else _number(getattr(found, field)) for found in reports)
            yield f"  {label:30}" + "".join(f"{value:>{width}}" for value in values)
        if reports[-1] is not None:
            yield from (f"    {label}: {getattr(reports[-1], field)}" for label, field in _NAMES)
    graphs = {title: import_graph(modules) for title, modules in trees.items()}
    yield "all packages"
    for label, field in (("modules", "modules"), ("lines", "lines"), ("code lines", "code_lines")):
        found = [[report(modules, package) for package in PACKAGES] for modules in trees.values()]
        totals = (sum(getattr(entry, field) for entry in column if entry) for column in found)
        yield f"  {label:30}" + "".join(f"{_number(total):>{width}}" for total in totals)
    yield "imports between packages (pairs of modules)"
    counts = [arrows(graph) for graph in graphs.values()]
    for pair in sorted(set().union(*counts)):
        yield f"  {' → '.join(pair):30}" + "".join(f"{count[pair] or '-':>{width}}" for count in counts)
    for title, graph in graphs.items():
        loops = cycles({name: targets for name, targets in graph.items() if name.split(".")[0] in PACKAGES})
        yield f"import cycles, {title}: {len(loops)}"
        yield from (f"  {' ↔ '.join(loop)}" for loop in loops)
    if list_undocumented:
        for title, modules in trees.items():
            yield f"public names without docstring, {title}"
            for module in modules.values():
                if module.path.split("/")[0] in PACKAGES:
                    yield from (f"  {module.path}: {name}" for name in sorted(module.undocumented))


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def as_json(modules: Mapping[str, Module]) -> dict[str, object]:
    """Return the report of one tree for `json.dumps`."""
    graph = import_graph(modules)
    reports = {package: report(modules, package) for package in (*PACKAGES, *_ALSO_COUNTED)}
    return {
        "packages": {package: vars(found) for package, found in reports.items() if found},
        "imports": {" → ".join(pair): count for pair, count in sorted(arrows(graph).items())},
        "cycles": cycles({name: targets for name, targets in graph.items() if name.split(".")[0] in PACKAGES}),
    }


if __name__ == "__main__":
    sys.exit(main())
