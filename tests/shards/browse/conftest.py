"""A served dataset: the real command in a process of its own, on a free port."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from shards import schema
from shards.index import write_dataset
from tests.paths import REPOSITORY
from tests.shards import samples

EVIL = '</p><script>alert(1)</script><img src=x onerror=alert(2)> "quoted" \'\u202e& [bold]'
EVIL_VIDEO = '../../etc/passwd?a=1&b="><script>alert(3)</script>'


@dataclass(frozen=True)
class Served:
    """A running server."""

    url: str
    root: Path
    process: subprocess.Popen[str]

    def get(self, path: str, **options: object) -> requests.Response:
        """Return the answer to a request; `path` is sent as it is."""
        session = requests.Session()
        session.trust_env = False
        prepared = session.prepare_request(requests.Request("GET", self.url, **options))  # type: ignore[arg-type]
        prepared.url = self.url + path  # requests would clean it
        return session.send(prepared, timeout=60)


def make_root(root: Path) -> Path:
    """Write a dataset with both levels, losses, a hostile video and caption, and two annotators of one moment."""
    dataset = samples.make_dataset(root)
    hostile = samples.clip(0, video=EVIL_VIDEO, text=EVIL)
    first = samples.clip(5, video="two-passes", tags=(3,))
    fields = {**vars(first.record), "narration_source": "narration_pass_2"}
    second = schema.Sample(
        key=first.key.replace("_c1_", "_c2_"), record=schema.ClipRecord(**fields), jpg=first.jpg, mp4=first.mp4
    )
    samples.write_shard(root, [hostile, first, second], number=3)
    write_dataset(root, config={}, toolchain=dataset.toolchain, provenance=dataset.provenance)
    return root


@contextmanager
def serve(root: Path, cache: Path, *options: str) -> Iterator[Served]:
    """Run `python -m shards.browse` until the block ends."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-u", "-m", "shards.browse", str(root), "--port", "0", *options]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cache
    )
    try:
        assert process.stdout is not None
        said, until = "", time.monotonic() + 120
        while (found := re.search(r"http://127\.0\.0\.1:\d+", said)) is None:
            line = process.stdout.readline()
            assert line and time.monotonic() < until, said
            said += line
        yield Served(found[0], root, process)
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of the dataset of `make_root`, with names of the verbs."""
    folder = tmp_path_factory.mktemp("browse")
    (folder / "verbs.csv").write_text("id,key\n1,open\n2,take\n3,juggle\n5,<b>cut</b>\n")
    with serve(make_root(folder / "shards"), folder, "--taxonomy", "tag_verb=verbs.csv") as running:
        yield running
