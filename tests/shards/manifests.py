"""Signs a dataset's manifest anew, for tests that change files which it lists."""

from __future__ import annotations

import json
from pathlib import Path

from shards.dataset import hash_file, hash_json


def sign_anew(root: Path) -> None:
    """Record the present hashes of the listed files in `dataset.json`, as a build that wrote them would."""
    path = root / "dataset.json"
    manifest = json.loads(path.read_bytes())
    del manifest["sha256"]
    manifest["files"] = {name: hash_file(root / name) for name in manifest["files"]}
    path.write_text(json.dumps({**manifest, "sha256": hash_json(manifest)}))
