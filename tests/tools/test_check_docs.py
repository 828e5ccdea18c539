"""tools/check_docs.py finds broken links, anchors, paths and names."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import check_docs

PAGE = """# A page
## Two `words`, one line
[good](page.md#two-words-one-line) [file](../shards/a.py) [web](https://example.org/missing)
[gone](missing.md) [anchor](#nowhere) <img src="no.png">
`a.py:f` `shards/a.py:C.m` `a.py:X` shards/a.py:missing and `b.py`, shards/ and shards/none.py; python -m shards.a

    python -m shards.z
```python
[not a](link)
```
"""


def write(root: Path, page: str) -> Path:
    """Write a page of documentation and one module; return the page."""
    for folder in ("docs", "shards"):
        (root / folder).mkdir()
    (root / "shards" / "a.py").write_text("X: int = 1\ndef f(): ...\nclass C:\n    def m(self): ...\n")
    (root / "docs" / "page.md").write_text(page)
    return root / "docs" / "page.md"


def test_each_broken_reference_is_found(tmp_path: Path) -> None:
    page = write(tmp_path, PAGE)
    assert list(check_docs.check_page(tmp_path, page)) == [
        f"docs/page.md: {problem}"
        for problem in (
            "broken link missing.md",
            "broken anchor #nowhere",
            "broken link no.png",
            "shards/none.py does not exist",
            "b.py does not exist",
            "shards/a.py defines no missing",
            "python -m shards.z: no such module",
        )
    ]
    assert check_docs.main(["--root", str(tmp_path)]) == 1


def test_a_whole_page_has_no_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "# Title\n[itself](#title), `shards/a.py:C`\n")
    assert check_docs.main(["--root", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "documentation: links, paths and names resolve\n"


def test_a_site_links_within_itself_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "index.html").write_text('<h2 id="here">x</h2><a href="../">up</a><a href="#here">same</a>')
    (tmp_path / "index.html").write_text(
        '<a href="sub/#here">1</a><a href="sub/#there">2</a><a href="none/">3</a><a href="https://example.org">4</a>'
        '<script src="https://cdn.example.org/x.js"></script><link rel="canonical" href="https://example.org/">'
    )
    assert list(check_docs.check_site(tmp_path)) == [
        "index.html: loads https://cdn.example.org/x.js from elsewhere",
        "index.html: broken anchor sub/#there",
        "index.html: broken link none/",
    ]
