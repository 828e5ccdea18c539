"""Writes the golden curve anew, after a deliberate change of batches or numerics:

    python preprocessing/build_shards.py output=DIR/shards demo_root=DIR/source demo.size=tiny ffmpeg=FFMPEG
    python -m tests.hiervl_train.make_golden_curve DIR/shards

FFMPEG is that of imageio-ffmpeg, as in the fixture `embedded`. The reason belongs into the commit's message.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from tests.hiervl_train.runs import finished

GOLDEN = Path(__file__).parent / "golden_curve.json"
STEPS = 50


def main() -> None:
    """Train on the shards that the command line names; write the losses."""
    with tempfile.TemporaryDirectory() as folder:
        losses = finished(Path(sys.argv[1]), Path(folder) / "run", f"run.max_steps={STEPS}")
    GOLDEN.write_text(json.dumps({"losses": [round(loss, 6) for loss in losses]}, indent=0) + "\n")


if __name__ == "__main__":
    main()
