"""Multiple-choice questions inside a training run: a few hundred, the same each time, answered in seconds.

    evaluate = periodic_mcq(config)  # of a pretraining run; None where it evaluates nothing
    evaluate(model, tokenizer, ranks)  # {"mcq/inter": 61.2, "mcq/intra": …, "summary_mcq": …, "shuffle_mcq": …}

Asked are EgoMCQ and SummaryMCQ where the dataset has them, otherwise questions made of `clips/val` and `summaries/val`
(`eval.mcq_builder`), and ShuffleMCQ of the summaries' right choices where the model can tell orders apart. Nothing is
cached, as the weights change; nothing is drawn from the process's random numbers, so a run that evaluates itself has
the losses of one that does not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.benchmark import has_order, pool
from eval.egomcq import answer
from eval.embed import EmbedSettings, embed_split, embed_texts
from eval.mcq_builder import McqConfig, QuestionType, build, read_candidates
from eval.metrics.mcq import GroupScore, rng_of
from eval.shufflemcq import GROUP, Asked, shuffle
from hiervl_train.config import PretrainConfig
from hiervl_train.distributed import DistributedContext, broadcast_text
from hiervl_train.evaluation import EvaluationConfig
from hiervl_train.levels import DataError
from hiervl_train.models import HierVL
from hiervl_train.tokenizer import Tokenizer
from shards.companions import Question, Questions, read_companion
from shards.dataset import Dataset, read_rows
from shards.schema import set_spec
from shards.sources import Source, open_source

CLIPS, SUMMARIES = (("egomcq", "test"), ("clips", "val")), (("summarymcq", "test"), ("summaries", "val"))
_OPTIONS = 5  # of a question; orders of a ShuffleMCQ question
_CLIPS_A_PASS = 32


def periodic_mcq(config: PretrainConfig) -> PeriodicMcq | None:
    """Return what evaluates a pretraining run, reading samples as its training does; None where it is off."""
    if not config.evaluation.is_on:
        return None
    settings = EmbedSettings(
        frames=config.sample.frames,
        windows=config.sample.windows,
        window_seconds=config.sample.window_seconds,
        channel_order=config.compat.channel_order,
        batch=config.schedule.clip_micro_batch or _CLIPS_A_PASS,
        speed=config.speed,
        decoder=config.data.decoder,
        workers=config.data.workers,
        worker_timeout_seconds=config.data.worker_timeout_seconds,
        max_consecutive_failures=config.data.max_consecutive_failures,
        source=config.data.source,
    )
    return PeriodicMcq(config.data.root, config.evaluation, settings)


@dataclass(frozen=True, kw_only=True)
class _Part:
    """The questions about one set; on ranks other than the first only what is to be embedded for them."""

    set_name: str
    split: str
    keys: list[str]
    texts: list[str]
    questions: tuple[Question, ...] = ()


class PeriodicMcq:
    """Answers the same questions at every call; all ranks call it together and get the same scores."""

    def __init__(self, root: str | Path, config: EvaluationConfig, settings: EmbedSettings) -> None:
        """Open the dataset; raise `DataError` where there is no set to ask about."""
        self._config, self._settings = config, settings
        self._source = open_source(root, settings.source)
        found = [_first(self._source.dataset, sets) for sets in (CLIPS, SUMMARIES)]
        self._sets = [place for place in found if place is not None]
        if not self._sets:
            wanted = ", ".join(f"{name}/{split}" for name, split in (*CLIPS, *SUMMARIES))
            raise DataError(f"{root}: has none of {wanted} to evaluate on; set evaluation.every_steps=null")
        self._parts: list[_Part] | None = None

    def __call__(self, model: HierVL, tokenizer: Tokenizer, ranks: DistributedContext) -> dict[str, float]:
        """Return accuracies in percent by name; those that nothing could be asked for are left out."""
        if self._parts is None:
            self._parts = self._prepare(ranks)
        scores: dict[str, float] = {}
        for part in self._parts:
            for name, group in self._ask(model, tokenizer, ranks, part):
                if group.items:
                    scores[name] = group.accuracy
        told: dict[str, float] = json.loads(broadcast_text(json.dumps(scores), ranks.control) or "{}")
        return told

    def _prepare(self, ranks: DistributedContext) -> list[_Part]:
        """Return the questions of each set: the first rank reads or makes them, the others are told what to embed."""
        parts = [self._part(name, split) for name, split in self._sets] if ranks.is_main else []
        told = broadcast_text(json.dumps([[p.set_name, p.split, p.keys, p.texts] for p in parts]), ranks.control)
        if ranks.is_main:
            return parts
        return [_Part(set_name=n, split=s, keys=keys, texts=texts) for n, s, keys, texts in json.loads(told or "[]")]

    def _part(self, set_name: str, split: str) -> _Part:
        questions = self._questions(set_name, split)
        keys = list(dict.fromkeys(key for question in questions for key in question.choices))
        texts = list(dict.fromkeys(question.text for question in questions))
        return _Part(set_name=set_name, split=split, keys=keys, texts=texts, questions=questions)

    def _questions(self, set_name: str, split: str) -> tuple[Question, ...]:
        if split not in set_spec(set_name).companions:
            return _made(self._source, set_name, split, self._config)
        found = read_companion(self._source, set_name, split, Questions)
        packed: set[str] = set()
        for shard in self._source.dataset.split(set_name, split).shards:
            packed.update(read_rows(self._source.parquet(shard), ["key"])["key"].to_pylist())
        whole = [question for question in found.questions if packed.issuperset(question.choices)]
        return tuple(_chosen(whole, self._config))

    def _ask(
        self, model: HierVL, tokenizer: Tokenizer, ranks: DistributedContext, part: _Part
    ) -> Iterator[tuple[str, GroupScore]]:
        """Yield name and score on the first rank; embed on all."""
        settings, config = self._settings, self._config
        embedded = embed_split(model, self._source, part.set_name, part.split, settings, ranks=ranks, keys=part.keys)
        texts = embed_texts(model, tokenizer, part.texts, settings, ranks=ranks)
        if embedded is None or texts is None:
            return
        index = embedded.index
        if not set_spec(part.set_name).is_long:
            for kind, group in answer(part.questions, texts, embedded.vectors, index).marks.groups.items():
                yield f"mcq/{kind}", group
            return

        def pooled(windows_NKD: np.ndarray) -> np.ndarray:
            return pool(model, windows_NKD, settings, ranks)

        for group in answer(part.questions, texts, pooled(embedded.vectors), index).marks.groups.values():
            yield "summary_mcq", group
        right = [(q.choices[q.answer], q) for q in part.questions if q.choices[q.answer] in index]
        if right and has_order(model) and settings.windows > 1:
            is_named = len({key for key, _ in right}) == len(right)  # as `eval.shufflemcq` names them: the same orders
            asked = [Asked(id=key if is_named else q.id, key=key, text=q.text) for key, q in right]
            windows_QWD = embedded.vectors[[index[one.key] for one in asked]]
            yield (
                "shuffle_mcq",
                shuffle(asked, texts, windows_QWD, pooled, options=_OPTIONS, seed=config.seed).marks.groups[GROUP],
            )


def _first(dataset: Dataset, places: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
    """Return the first split that the dataset has, with samples in it."""
    return next(
        (
            (name, split)
            for name, split in places
            if split in dataset.sets.get(name, {}) and dataset.split(name, split).samples
        ),
        None,
    )


def _made(source: Source, set_name: str, split: str, config: EvaluationConfig) -> tuple[Question, ...]:
    """Return questions made of a split, each type with five options, or the most that any question can have."""
    types: tuple[QuestionType, ...] = ("inter",) if set_spec(set_name).is_long else ("inter", "intra")
    candidates = read_candidates(source, set_name, split)
    fingerprint = source.dataset.split(set_name, split).fingerprint
    found: list[Question] = []
    for kind in types:
        for options in range(_OPTIONS, 1, -1):
            wanted = McqConfig(seed=config.seed, options=options, types=(kind,), questions=config.questions)
            built = build(candidates, wanted, fingerprint=fingerprint, set_name=set_name, split=split, name="periodic")
            if built.questions.questions:
                found += built.questions.questions
                break
    return tuple(found)


def _chosen(questions: Sequence[Question], config: EvaluationConfig) -> Iterator[Question]:
    """Yield so many of each type as are wanted: those whose ids come first in an order of their own."""
    for kind in dict.fromkeys(question.type for question in questions):
        inside = [question for question in questions if question.type == kind]
        inside.sort(key=lambda q: int(rng_of("which", config.seed, kind, q.id).integers(2**63)))
        yield from inside[: config.questions]
