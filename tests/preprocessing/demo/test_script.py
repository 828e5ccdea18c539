"""Scripts: seeds, special videos, and activities in every preset."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from typing import Any

import pytest

from preprocessing.demo import DemoConfig
from preprocessing.demo.narrate import narrate
from preprocessing.demo.script import Flaw, make_scripts
from tests.preprocessing.demo.conftest import CONFIG


def test_a_different_seed_gives_different_uids_and_actions() -> None:
    ours, other = make_scripts(CONFIG), make_scripts(dataclasses.replace(CONFIG, seed=1))
    assert not {s.video_uid for s in ours} & {s.video_uid for s in other}
    assert [s.actions for s in ours] != [s.actions for s in other]


@pytest.mark.parametrize("size", ["tiny", "small", "large"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_preset_has_all_special_videos_and_narrations(size: Any, seed: int) -> None:
    config = DemoConfig(size=size, seed=seed)
    scripts = make_scripts(config)
    assert Counter(s.flaw for s in scripts if s.flaw is not Flaw.NONE) == Counter(
        [Flaw.DAMAGED, Flaw.TRUNCATED, Flaw.MISSING]
    )
    remarks = narrate(config, scripts)
    assert {"short clip", "past the end", "no tags", "odd text", f"across {config.chunk_seconds:g} s"} <= set(
        remarks.odd
    )
    assert scripts[0].video_uid in {uid for uid, *_ in remarks.odd[f"across {config.chunk_seconds:g} s"]}
    assert all(len(s.episodes) >= 1 for s in scripts)
    assert [e.activity for e in scripts[0].episodes[:2]] == [scripts[0].episodes[0].activity] * 2
    for script in scripts:
        assert script.actions[-1].core_end < script.duration
        assert all(a.end <= b.start + 1e-6 for a, b in itertools.pairwise(script.actions))
        assert all(e.end <= script.duration for e in script.episodes)
    done = Counter(e.activity.name for s in scripts for e in s.episodes)
    assert len(done) == 2 * config.n_pairs
    assert max(done.values()) <= 2 * min(done.values())
