"""Narrations and summaries: what they describe, and that there are enough of them."""

from __future__ import annotations

from typing import Any

import pytest

from preprocessing.demo import DemoConfig
from preprocessing.demo.narrate import narrate
from preprocessing.demo.script import make_scripts
from preprocessing.demo.vocabulary import NOUNS, VERBS, activities


def is_said(text: str, remark: str) -> bool:
    """Whether a remark is the phrase `text`, with or without an afterthought."""
    return remark == text or remark.startswith(text + " ")


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_the_order_of_narrated_actions_determines_the_activity(size: Any) -> None:
    config = DemoConfig(size=size)
    phrases = {
        "#C C " + phrase.format(f"the {noun.looks}"): (verb.name, noun.name)
        for verb in VERBS.values()
        for noun in NOUNS.values()
        for phrase in (verb.phrase, verb.rephrased)
    }
    known = {activity.steps: activity for activity in activities(config.n_pairs)}
    steps = {step for activity in known.values() for step in activity.steps}
    remarks = narrate(config, make_scripts(config))
    for summary in remarks.summaries:
        done = []
        for remark in remarks.narrations:
            same = (remark.video_uid, remark.narration_pass) == (summary.video_uid, summary.narration_pass)
            if same and summary.clip_start <= remark.time <= summary.clip_end:
                done += [action for text, action in phrases.items() if is_said(text, remark.text)]
        activity = known[tuple(action for action in done if action in steps)]
        assert summary.text.removeprefix("#Summary C ") in (activity.name, activity.rephrased)
        assert (summary.tag_verb, summary.tag_noun) == (activity.tag_verb, activity.tag_noun)


def test_the_default_preset_has_enough_narrations_and_classes() -> None:
    remarks = narrate(config := DemoConfig(), make_scripts(config))
    assert len({tag for remark in remarks.narrations for tag in remark.tag_verb}) >= 8
    assert len({tag for remark in remarks.narrations for tag in remark.tag_noun}) >= 10
    assert len(remarks.narrations) > 400
    assert len(remarks.summaries) > 80
