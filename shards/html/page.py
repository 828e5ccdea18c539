"""Writes an HTML page of the project: one style, one script, no request outside the page's own folder.

A page is readable at phone width and follows the reader's colour scheme. Its parts are made by `shards.html.elements`
and `shards.html.charts`. A page with charts needs Bokeh's JavaScript, which is copied beside it.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Iterable
from pathlib import Path

from shards.files import write_bytes
from shards.html.elements import join, text

CHART = "plot"  # class of a chart's element
_CHART_TAG = f'<div class="{CHART}"'  # no string can hold it, since strings are escaped
_LIBRARY = Path("server", "static", "js", "bokeh.min.js")  # in Bokeh's package


def write_page(path: str | Path, title: str, body: Iterable[object]) -> Path:
    """Write a page atomically, and the chart library beside it where a chart needs it; return the page's path."""
    path, page = Path(path), document(title, body)
    if _CHART_TAG.encode() in page:
        library = path.with_name(library_name())
        if not library.exists():
            write_bytes(library, _library().read_bytes())
    write_bytes(path, page)
    return path


def document(title: str, body: Iterable[object]) -> bytes:
    """Return a page; no script runs in it but ours and the chart library's, whatever its strings hold."""
    content = join(body)
    has_charts, script, policy = _CHART_TAG in content, "", "default-src 'none'; img-src 'self' data:; "
    if has_charts or "<video " in content:
        source = _read("script.js")
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        library = f'<script src="{library_name()}"></script>' if has_charts else ""
        script = f"{library}<script>{source}</script>"
        policy += f"media-src 'self' blob:; connect-src 'self'; script-src 'self' 'sha256-{digest}'; "
    policy += "style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{text(title)}</title><style>{_read('style.css')}</style></head>"
        f"<body><main>{content}</main>{script}</body></html>\n"
    )
    return page.encode(errors="replace")  # JSON can hold lone surrogates, UTF-8 cannot


def library_name() -> str:
    """Return the chart library's file name, with its version: a page needs the one it was made with."""
    return f"bokeh-{importlib.metadata.version('bokeh')}.min.js"


def _library() -> Path:
    """Return the chart library's JavaScript in the installed package, found without importing it."""
    spec = importlib.util.find_spec("bokeh")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("bokeh is not installed: pip install bokeh")
    return Path(spec.origin).parent / _LIBRARY


@functools.cache
def _read(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
