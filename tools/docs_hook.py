"""A hook of MkDocs: adds the API reference, CONTRIBUTING.md and CHANGELOG.md to the documentation site.

Every module of the packages gets the page `reference/<dotted name>.md`, filled from its docstrings by mkdocstrings.
A package's page lists its modules with the first sentence of each.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_REPOSITORY = Path(__file__).resolve().parent.parent
_PACKAGES = ("configs", "shards", "preprocessing", "hiervl_train", "eval")
_FROM_ROOT = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and the reference to the navigation."""
    for source, page in _FROM_ROOT.items():
        text = (_REPOSITORY / source).read_text(encoding="utf-8").replace("](docs/", "](")
        for name, other in _FROM_ROOT.items():
            text = text.replace(f"]({name}", f"]({other}")
        files.append(File.generated(config, page, content=text))
    entries: Any = [_add_package(files, config, _REPOSITORY / name) for name in _PACKAGES]
    (config.nav or []).append({"API reference": entries})
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to CONTRIBUTING.md and CHANGELOG.md, which are beside docs/, to their pages."""
    for source, target in _FROM_ROOT.items():
        markdown = markdown.replace(f"](../{source}", f"]({target}")
    return markdown


def _add_package(files: Files, config: MkDocsConfig, folder: Path) -> dict[str, list[Any]]:
    """Add the pages of a package and of what is in it; return its entry of the navigation."""
    name = _dotted(folder)
    rows: list[str] = []
    entries: list[Any] = []
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_dir(), path.name)):
        module = _dotted(path.with_suffix(""))
        page = f"reference/{module}.md"
        if path.name == "__main__.py":
            rows.append(f"| `python -m {name}` | {_first_sentence(path)} |")
        elif path.suffix == ".py" and path.name != "__init__.py":
            files.append(File.generated(config, page, content=f"# {path.stem}\n\n`{module}`\n\n::: {module}\n"))
            entries.append({path.stem: page})
            rows.append(f"| [`{path.stem}`]({module}.md) | {_first_sentence(path)} |")
        elif (path / "__init__.py").exists():
            entries.append(_add_package(files, config, path))
            rows.append(f"| [`{path.name}/`]({module}.md) | {_first_sentence(path / '__init__.py')} |")
        elif (path / "__main__.py").exists():  # a namespace package, which the reference leaves out
            rows.append(f"| `python -m {module}` | {_first_sentence(path / '__main__.py')} |")
        elif any(path.glob("*.py")):
            rows += [f"| `{path.name}/{file.name}` | {_first_sentence(file)} |" for file in sorted(path.glob("*.py"))]
    own = f"::: {name}\n\n" if (folder / "__init__.py").read_text(encoding="utf-8").strip() else ""
    table = "\n".join(["| module | what it is for |", "|---|---|", *rows])
    content = f"# {folder.name}\n\n`{name}`\n\n{own}## Modules\n\n{table}\n"
    files.append(File.generated(config, f"reference/{name}.md", content=content))
    return {folder.name: [f"reference/{name}.md", *entries]}


def _dotted(path: Path) -> str:
    return ".".join(path.relative_to(_REPOSITORY).parts)


def _first_sentence(path: Path) -> str:
    """Return the first line of a module's docstring, fit for a cell of a table."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) if path.exists() else None
    return (docstring or "").split("\n")[0].replace("|", "\\|")
