"""Evaluates a model during its own training: multiple-choice questions of a pretraining run, a fine-tuning's benchmark.

    evaluate = periodic_mcq(config)  # a PretrainConfig; None if it evaluates nothing
    evaluate(model, tokenizer, ranks)  # {"mcq/inter": 61.2, "mcq/intra": …, "summary_mcq": …, "shuffle_mcq": …}

The questions are those of EgoMCQ and SummaryMCQ if the dataset has them, otherwise generated from `clips/val` and
`summaries/val` (`eval.mcq_builder`), and those of ShuffleMCQ if the model distinguishes orders of windows. They are the
same at every call. Recall (`recall_clips/text_to_video@1`, …) is measured on as many samples of `clips/val` and
`summaries/val` as `evaluation.recall` says, or where no question can be made. Nothing is cached, as the weights change,
and nothing is drawn from the process's random numbers: a run that evaluates itself has the same losses as one that does
not.

Shapes in names: Q questions, W windows, N samples, K windows of a sample, D width of the shared space.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from eval import charades_ego, epic_mir
from eval.benchmark import Benchmark, Context
from eval.config import EvalConfig, EvalDataConfig
from eval.embed import (
    EmbedSettings,
    SampleEmbeddings,
    TextEmbeddings,
    aggregate_windows,
    embed_split,
    embed_texts,
    is_order_sensitive,
)
from eval.mcq import answer_questions
from eval.mcq_builder import McqConfig, QuestionType, build, read_candidates
from eval.metrics.mcq import GroupAccuracy, keyed_rng
from eval.recall import Captioned, read_captioned, retrieve
from eval.shufflemcq import GROUP, answer_order_questions, order_questions
from hiervl_train.checkpoint.open import OpenedCheckpoint
from hiervl_train.collectives import broadcast_json
from hiervl_train.config import EvaluationConfig, PretrainConfig
from hiervl_train.data import DataError
from hiervl_train.distributed import DistributedContext
from hiervl_train.models import HierVL
from hiervl_train.task import CHANCE, Evaluate
from hiervl_train.tasks.config import FinetuneConfig
from hiervl_train.tokenizer import Tokenizer
from shards.companions import Question, Questions, read_companion
from shards.dataset import Dataset, read_rows
from shards.features import features_folder, open_features
from shards.schema import set_spec
from shards.sources import Source, open_source

CLIP_SPLITS = (("egomcq", "test"), ("clips", "val"))  # the first one that the dataset has is used
SUMMARY_SPLITS = (("summarymcq", "test"), ("summaries", "val"))
_VAL = (("clips", "val"), ("summaries", "val"))  # what recall is measured on
_OPTIONS = 5  # per question; orders per ShuffleMCQ question
_CLIPS_PER_PASS = 32
_RECALL = 500  # samples by which recall is measured where there are no questions and `evaluation.recall` is 0
_KS = (1, 5, 10)
# Which scores of its benchmark a fine-tuning run logs. (HowTo100M's head is a part of the run, which scores it itself.)
_FINETUNE_SCORES = {"charades_ego": ("mAP",), "epic_mir": ("mAP", "nDCG")}


def periodic_mcq(config: PretrainConfig) -> PeriodicMcq | None:
    """Return the evaluation of a pretraining run, which reads samples as its training does; None if it is off.

    Raises `DataError` if the dataset has no set to evaluate on.
    """
    if not config.evaluation.is_on:
        return None
    settings = EmbedSettings(
        **config.data.reading(),
        frames=config.sample.frames,
        windows=config.sample.windows,
        window_seconds=config.sample.window_seconds,
        channel_order=config.compat.channel_order,
        micro_batch=size if isinstance(size := config.schedule.clip_micro_batch, int) else _CLIPS_PER_PASS,
        speed=config.speed,
        features=config.data.features,
    )
    return PeriodicMcq(config.data.root, config.evaluation, settings)


def periodic_benchmark(config: FinetuneConfig) -> Evaluate | None:
    """Return the evaluation of a fine-tuning run by its task's own benchmark; None if it is off or has none.

    Clips are read as in training. Raises `ShardError` if the dataset does not have the benchmark.
    """
    task, data = config.task.name, config.data
    benchmarks: dict[str, Benchmark[Any]] = {"charades_ego": charades_ego.BENCHMARK, "epic_mir": epic_mir.BENCHMARK}
    benchmark = benchmarks.get(task)
    if benchmark is None or not config.evaluation.is_on:
        return None
    source = open_source(data.root, data.source)
    source.dataset.split(benchmark.set_name, benchmark.split)
    settings = EmbedSettings(
        **data.reading(),
        frames=config.sample.frames,
        channel_order=config.compat.channel_order,
        micro_batch=config.schedule.micro_batch or config.schedule.batch,
        speed=config.speed,
    )
    eval_config = EvalConfig(
        data=EvalDataConfig(**data.reading(), root=data.root), cache=None, compat=config.compat, resamples=1
    )

    def evaluate(model: HierVL, tokenizer: Tokenizer, ranks: DistributedContext) -> Mapping[str, float]:
        context = Context(
            config=eval_config,
            settings=settings,
            opened=OpenedCheckpoint(model=model, tokenizer=tokenizer, digest="", path=config.run.folder),
            source=source,
            ranks=ranks,
            set_name=benchmark.set_name,
            split=benchmark.split,
            console=Console(quiet=True),
        )
        output = benchmark.evaluate(context)
        scores: dict[str, float] = {}
        for score in output.scores if output is not None else ():
            if score.name in _FINETUNE_SCORES[task]:
                scores[f"{task}/{score.name}"] = score.value
                if score.chance is not None:
                    scores[f"{CHANCE}{task}/{score.name}"] = score.chance
        return _on_all_ranks(scores, ranks)

    return evaluate


@dataclass(frozen=True, kw_only=True)
class _SetQuestions:
    """The questions about one set; on other ranks than the first only what is embedded for them."""

    set_name: str
    split: str
    keys: list[str]
    texts: list[str]
    questions: tuple[Question, ...] = ()
    captioned: tuple[Captioned, ...] = ()  # samples that recall is measured on


class PeriodicMcq:
    """Answers the same questions at every call; all ranks call it together and get the same scores."""

    def __init__(self, root: str | Path, config: EvaluationConfig, settings: EmbedSettings) -> None:
        """Open the dataset; raise `DataError` if it has no set to evaluate on."""
        self._config, self._settings = config, settings
        self._source = open_source(root, settings.source)
        found = [_first_split(self._source.dataset, splits) for splits in (CLIP_SPLITS, SUMMARY_SPLITS)]
        self._splits = [split for split in found if split is not None]
        if not self._splits:
            wanted = ", ".join(f"{name}/{split}" for name, split in (*CLIP_SPLITS, *SUMMARY_SPLITS))
            raise DataError(
                f"{root}: has none of {wanted} to evaluate on; set evaluation.every_steps=null evaluation.at_end=false"
            )
        self._sets: list[_SetQuestions] | None = None
        self._stored: Collection[tuple[str, str]] = ()  # the splits whose features are read instead of video
        if settings.features is not None:
            folder = features_folder(self._source.dataset, settings.features)
            self._stored = open_features(folder).splits.keys()

    def __call__(self, model: HierVL, tokenizer: Tokenizer, ranks: DistributedContext) -> Mapping[str, float]:
        """Return accuracies and chance levels in percent by name, without those the dataset has no questions for."""
        if self._sets is None:
            self._sets = self._prepare(ranks)
        scores: dict[str, float] = {}
        for one in self._sets:
            for name, value, chance in self._scores(model, tokenizer, ranks, one):
                scores |= {name: value, f"{CHANCE}{name}": chance}
        return _on_all_ranks(scores, ranks)

    def _prepare(self, ranks: DistributedContext) -> list[_SetQuestions]:
        """Return the questions of each set: the first rank reads or generates them, the others learn what to embed."""
        sets = [self._set_questions(name, split) for name, split in self._splits] if ranks.is_main else []
        if ranks.is_main:
            has_questions = any(one.questions for one in sets)
            limit = self._config.recall or (0 if has_questions else _RECALL)
            val = [pair for pair in _VAL if limit and _first_split(self._source.dataset, [pair]) is not None]
            sets += [self._set_captions(name, split, limit) for name, split in val]
            sets = [one for one in sets if one.keys]
        inputs = broadcast_json([[s.set_name, s.split, s.keys, s.texts] for s in sets], ranks.control)
        if ranks.is_main:
            return sets
        return [
            _SetQuestions(set_name=name, split=split, keys=keys, texts=texts) for name, split, keys, texts in inputs
        ]

    def _set_questions(self, set_name: str, split: str) -> _SetQuestions:
        questions = self._questions(set_name, split)
        keys = list(dict.fromkeys(key for question in questions for key in question.choices))
        texts = list(dict.fromkeys(question.text for question in questions))
        return _SetQuestions(set_name=set_name, split=split, keys=keys, texts=texts, questions=questions)

    def _set_captions(self, set_name: str, split: str, limit: int) -> _SetQuestions:
        found = read_captioned(self._source, set_name, split, limit=limit, seed=self._config.seed)
        return _SetQuestions(
            set_name=set_name,
            split=split,
            keys=[sample.key for sample in found],
            texts=list(dict.fromkeys(sample.text for sample in found)),
            captioned=tuple(found),
        )

    def _questions(self, set_name: str, split: str) -> tuple[Question, ...]:
        if split not in set_spec(set_name).companions:
            return _generated(self._source, set_name, split, self._config)
        questions = read_companion(self._source, set_name, split, Questions).questions
        packed: set[str] = set()
        for shard in self._source.dataset.split(set_name, split).shards:
            packed.update(read_rows(self._source.parquet(shard), ["key"])["key"].to_pylist())
        complete = [question for question in questions if packed.issuperset(question.choices)]
        return tuple(_chosen(complete, self._config))

    def _scores(
        self, model: HierVL, tokenizer: Tokenizer, ranks: DistributedContext, one: _SetQuestions
    ) -> Iterator[tuple[str, float, float]]:
        """Embed on all ranks; yield each score's name, value and chance level, in percent, on the first one."""
        settings = self._settings
        if (one.set_name, one.split) not in self._stored:
            settings = replace(settings, features=None)
        samples = embed_split(model, self._source, one.set_name, one.split, settings, ranks=ranks, keys=one.keys)
        texts = embed_texts(model, tokenizer, one.texts, settings, ranks=ranks)
        if samples is None or texts is None:
            return
        if one.captioned:
            yield from self._recall(model, ranks, one, samples, texts)
            return
        for name, group in self._accuracies(model, ranks, one, samples, texts):
            if group.items:
                yield name, group.accuracy, group.chance

    def _recall(
        self,
        model: HierVL,
        ranks: DistributedContext,
        one: _SetQuestions,
        samples: SampleEmbeddings,
        texts: TextEmbeddings,
    ) -> Iterator[tuple[str, float, float]]:
        embedded = [sample for sample in one.captioned if sample.key in samples.index]
        if len(embedded) < 2:
            return
        vectors = samples.vectors
        if set_spec(one.set_name).is_long:
            vectors = aggregate_windows(model, vectors, self._settings.speed, ranks.device)
        video_ND = vectors[[samples.index[sample.key] for sample in embedded]]
        found = retrieve(embedded, texts.of([sample.text for sample in embedded]), video_ND)
        for direction, hits in (("text_to_video", found.to_video), ("video_to_text", found.to_text)):
            for k in (k for k in _KS if k < hits.items):
                yield f"recall_{one.set_name}/{direction}@{k}", float(hits.recall(k).mean()), hits.chance(k)

    def _accuracies(
        self,
        model: HierVL,
        ranks: DistributedContext,
        one: _SetQuestions,
        samples: SampleEmbeddings,
        texts: TextEmbeddings,
    ) -> Iterator[tuple[str, GroupAccuracy]]:
        """Yield the name and the accuracy of each group of questions."""
        settings = self._settings
        if not set_spec(one.set_name).is_long:
            answers = answer_questions(one.questions, texts, samples.vectors, samples.index)
            yield from ((f"mcq/{group}", accuracy) for group, accuracy in answers.scores.groups.items())
            return

        def aggregate(windows_NKD: np.ndarray) -> np.ndarray:
            return aggregate_windows(model, windows_NKD, settings.speed, ranks.device)

        answers = answer_questions(one.questions, texts, aggregate(samples.vectors), samples.index)
        yield from (("summary_mcq", accuracy) for accuracy in answers.scores.groups.values())
        embedded = [question for question in one.questions if question.choices[question.answer] in samples.index]
        if embedded and is_order_sensitive(model) and settings.windows > 1:
            questions = order_questions(embedded)
            windows_QWD = samples.vectors[[samples.index[question.key] for question in questions]]
            orders = answer_order_questions(
                questions, texts, windows_QWD, aggregate, options=_OPTIONS, seed=self._config.seed
            )
            yield "shuffle_mcq", orders.scores.groups[GROUP]


def _on_all_ranks(scores: Mapping[str, float], ranks: DistributedContext) -> Mapping[str, float]:
    """Return the first rank's scores."""
    received: dict[str, float] = broadcast_json(scores, ranks.control)
    return received


def _first_split(dataset: Dataset, splits: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
    """Return the first of the splits that the dataset has with samples in it."""
    for name, split in splits:
        if split in dataset.sets.get(name, {}) and dataset.split(name, split).samples:
            return name, split
    return None


def _generated(source: Source, set_name: str, split: str, config: EvaluationConfig) -> tuple[Question, ...]:
    """Return questions generated from a split, each type with five options, or with the most that are possible."""
    types: tuple[QuestionType, ...] = ("inter",) if set_spec(set_name).is_long else ("inter", "intra")
    candidates = read_candidates(source, set_name, split)
    fingerprint = source.dataset.split(set_name, split).fingerprint
    questions: list[Question] = []
    for kind in types:
        for options in range(_OPTIONS, 1, -1):
            wanted = McqConfig(seed=config.seed, options=options, types=(kind,), questions=config.questions)
            built = build(candidates, wanted, fingerprint=fingerprint, set_name=set_name, split=split, name="periodic")
            if built.questions.questions:
                questions += built.questions.questions
                break
    return tuple(questions)


def _chosen(questions: Sequence[Question], config: EvaluationConfig) -> Iterator[Question]:
    """Yield at most `config.questions` of each type, chosen by a hash of seed and id."""
    for kind in dict.fromkeys(question.type for question in questions):
        inside = [question for question in questions if question.type == kind]
        inside.sort(key=lambda q: int(keyed_rng("which", config.seed, kind, q.id).integers(2**63)))
        yield from inside[: config.questions]
