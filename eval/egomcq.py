"""EgoMCQ: which of five clips shows a narration; inter- and intra-video accuracy (EgoVLP, section 3.3).

    python eval/egomcq.py --checkpoint C --shards ROOT [--questions FILE] [--config F] [key=value …]

Any file of questions of the same form will do, over clips or long samples (`eval/build_mcq.py` makes them).

Shapes in names: Q questions, K options of a question, N samples, D width of the shared space.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eval.benchmark import Benchmark, BenchmarkOutput, Context, main
from eval.embed import Embedded, Texts
from eval.metrics.bootstrap import interval_of_mean
from eval.metrics.mcq import Marks, score_questions
from eval.metrics.similarity import option_similarities
from eval.results import Item, Missing, Option, Score
from shards.companions import CompanionError, Question, Questions, read_companion, read_questions
from shards.schema import set_spec

_POINTS = 50  # of a curve


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """What a model made of questions."""

    sim_QK: np.ndarray  # float64; NaN for an option that could not be had, or that a question does not have
    marks: Marks


def evaluate(context: Context) -> BenchmarkOutput | None:
    """Score the benchmark's questions, or those of the configured file."""
    return evaluate_questions(context, questions_of(context), is_all=context.config.questions is None)


def questions_of(context: Context) -> Questions:
    """Return the questions asked for; raise `CompanionError` where there are none, or they are of another set."""
    file = context.config.questions
    if file is None:
        where = f"{context.set_name}/{context.split}"
        found = read_companion(context.source, context.set_name, context.split, Questions)
    else:
        where, found = str(file), read_questions(file)
        if (found.set, found.split) != (context.set_name, context.split):
            raise CompanionError(
                f"{file}: its questions are of {found.set}/{found.split}: --set {found.set} --split {found.split}"
            )
    if not found.questions:
        raise CompanionError(f"{where}: holds no questions ({len(found.rejected)} malformed ones)")
    return found


def evaluate_questions(context: Context, questions: Questions, *, is_all: bool) -> BenchmarkOutput | None:
    """Score questions over clips, or over long samples, whose windows are aggregated; `is_all`: of the whole split."""
    embedded = context.embed(keys=None if is_all else questions.keys())
    texts = context.texts([question.text for question in questions.questions])
    if embedded is None or texts is None:
        return None
    is_long = set_spec(context.set_name).is_long
    video_ND = context.aggregate(embedded.vectors) if is_long else embedded.vectors
    asked, captions = questions.questions, context.captions()
    answers = answer(asked, texts, video_ND, embedded.index)
    there = frozenset(embedded.keys)
    return BenchmarkOutput(
        name=questions.name,
        scores=list(accuracies(context, questions.name, asked, answers.marks)),
        items=[item(q, answers, row, captions) for row, q in enumerate(asked) if answers.marks.predicted_Q[row] >= 0],
        missing=[
            *(
                Missing(item=q.id, reason=_why(context, embedded, there, q))
                for q in asked
                if not there.issuperset(q.choices)
            ),
            *(Missing(item=rejected.id, reason=f"malformed: {rejected.reason}") for rejected in questions.rejected),
        ],
        of=len(asked) + len(questions.rejected),
        curves={
            f"{group} accuracy by confidence": by_confidence(asked, answers, group) for group in answers.marks.groups
        },
    )


def answer(questions: Sequence[Question], texts: Texts, video_ND: np.ndarray, index: Mapping[str, int]) -> Answers:
    """Return similarities and marks of questions; `index` says in which row of `video_ND` a key is."""
    text_QD = texts.of([question.text for question in questions])
    most = max((len(question.choices) for question in questions), default=0)
    choices_QK = np.full((len(questions), most), -1, np.int64)
    for row, question in enumerate(questions):
        choices_QK[row, : len(question.choices)] = [index.get(key, -1) for key in question.choices]
    sim_QK = option_similarities(text_QD, video_ND, choices_QK)
    marks = score_questions(
        sim_QK,
        [question.answer for question in questions],
        [question.type for question in questions],
        [len(question.choices) for question in questions],
    )
    return Answers(sim_QK=sim_QK, marks=marks)


def accuracies(context: Context, benchmark: str, questions: Sequence[Question], marks: Marks) -> list[Score]:
    """Return the accuracy of each type of question that was scored at all."""
    found = []
    for group, total in marks.groups.items():
        if not total.items:
            continue
        inside = np.array([question.type == group for question in questions])
        values = marks.score_Q[inside & (marks.predicted_Q >= 0)]
        interval = interval_of_mean(values, seed=context.config.seed, resamples=context.config.resamples)
        name = f"{group} accuracy"
        found.append(
            context.score(benchmark, name, total.accuracy, interval, items=total.items, of=total.of, tied=total.tied)
        )
    return found


def item(question: Question, answers: Answers, row: int, captions: dict[str, str]) -> Item:
    """Return a scored question with its options."""
    return Item(
        id=question.id,
        group=question.type,
        text=question.text,
        score=float(answers.marks.score_Q[row]),
        answer=question.choices[question.answer],
        predicted=question.choices[int(answers.marks.predicted_Q[row])],
        options=[
            Option(key=key, text=captions.get(key, ""), score=float(sim))
            for key, sim in zip(question.choices, answers.sim_QK[row], strict=False)
        ],
        note="tied" if answers.marks.tied_Q[row] else "",
    )


def by_confidence(questions: Sequence[Question], answers: Answers, group: str) -> list[tuple[float, float]]:
    """Return the accuracy of the most confidently answered share of a group's questions, both in percent.

    Confidence is the distance between the best and the second best option.
    """
    rows = [r for r, q in enumerate(questions) if q.type == group and answers.marks.predicted_Q[r] >= 0]
    if not rows:
        return []
    options = np.sort(np.nan_to_num(answers.sim_QK[rows], nan=-np.inf), axis=1)
    order = np.argsort(-(options[:, -1] - options[:, -2]), kind="stable")
    means = np.cumsum(answers.marks.score_Q[rows][order]) / np.arange(1, len(rows) + 1)
    places = np.unique(np.linspace(0, len(rows) - 1, _POINTS).round().astype(int))
    return [(100 * (place + 1) / len(rows), float(means[place])) for place in places.tolist()]


def _why(context: Context, embedded: Embedded, there: Collection[str], question: Question) -> str:
    """Return why a question is not scored: the first of its clips that could not be had."""
    absent = [key for key in question.choices if key not in there]
    more = f" (and {len(absent) - 1} more)" if len(absent) > 1 else ""
    return f"{absent[0]}: {context.why(embedded, absent[0])}{more}"


BENCHMARK = Benchmark(
    name="egomcq", set_name="egomcq", split="test", evaluate=evaluate, title="EgoMCQ, or any file of questions"
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
