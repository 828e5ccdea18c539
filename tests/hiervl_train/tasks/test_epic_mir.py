"""The choice of EPIC-KITCHENS sentences: relevant, uniform, and determined by seed, epoch and key."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from hiervl_train.tasks.epic_mir import RelevantSentences
from shards.companions import (
    EpicLabels,
    EpicSentence,
    EpicVideo,
)


def epic_labels(videos: list[tuple[int, tuple[int, ...]]], sentences: list[tuple[int, tuple[int, ...]]]) -> EpicLabels:
    """Return labels of these verb and noun classes; clips are k0, k1, …; texts name their row."""
    return EpicLabels(
        videos=tuple(
            EpicVideo(key=f"k{i}", narration_id=f"v{i}", text=f"own {i}", verb_class=verb, noun_classes=nouns)
            for i, (verb, nouns) in enumerate(videos)
        ),
        sentences=tuple(
            EpicSentence(narration_id=f"s{i}", text=f"sentence {i}", verb_class=verb, noun_classes=nouns)
            for i, (verb, nouns) in enumerate(sentences)
        ),
    )


def random_classes(count: int, seed: int) -> list[tuple[int, tuple[int, ...]]]:
    rng = np.random.default_rng(seed)
    return [(int(rng.integers(97)), tuple(rng.integers(40, size=rng.integers(1, 5)).tolist())) for _ in range(count)]


def test_sentences_above_the_threshold_are_chosen_equally_often() -> None:
    # Relevancies to verb 3 and noun 7: both 1, the noun among ten 0.05, the noun among two 0.25, the verb 0.5, none 0.
    sentences = [(3, (7,)), (4, (7, *range(10, 19))), (4, (7, 8)), (3, (9,)), (4, (9,))]
    ours = RelevantSentences(epic_labels([(3, (7,))], sentences), above=0.1, seed=0)
    chosen = [ours.choose("k0", epoch) for epoch in range(600)]
    assert {(one.text, one.relevancy) for one in chosen} == {
        ("sentence 0", 1.0),
        ("sentence 2", 0.25),
        ("sentence 3", 0.5),
    }
    assert all(160 < count < 240 for count in Counter(one.text for one in chosen).values())


def test_a_clip_without_a_relevant_sentence_gets_its_own_narration() -> None:
    ours = RelevantSentences(epic_labels([(3, (7,)), (5, (9,))], [(5, (9,))]), above=0.1, seed=0)
    assert {(one.text, one.relevancy) for one in (ours.choose("k0", epoch) for epoch in range(5))} == {("own 0", 1.0)}


def test_the_choice_depends_on_seed_epoch_and_key_only() -> None:
    labels = epic_labels(random_classes(30, 2), random_classes(400, 3))
    keys = [video.key for video in labels.videos]
    one, again = (RelevantSentences(labels, above=0.1, seed=4) for _ in range(2))
    first = {(key, epoch): one.choose(key, epoch) for epoch in range(3) for key in keys}
    assert {(key, epoch): again.choose(key, epoch) for epoch in (2, 0, 1) for key in keys[::-1]} == first
    assert sum(first[key, 0] != first[key, 1] for key in keys) > 20
    other = RelevantSentences(labels, above=0.1, seed=5)
    assert sum(other.choose(key, 0) != first[key, 0] for key in keys) > 20


def test_both_narrations_of_one_interval_are_used() -> None:
    labels = epic_labels([(3, (7,)), (5, (9,))], [(3, (7,)), (5, (9,))])
    both = tuple(replace(video, key="k0") for video in labels.videos)
    ours = RelevantSentences(replace(labels, videos=both), above=0.1, seed=0)
    assert {ours.choose("k0", epoch).text for epoch in range(40)} == {"sentence 0", "sentence 1"}
