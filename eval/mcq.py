"""Reads and scores multiple-choice questions over clips or long samples.

Shapes in names: Q questions, K options of a question, N samples, D width of the shared space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eval.benchmark import BenchmarkOutput, Context, Embeddings, Inputs
from eval.embed import TextEmbeddings
from eval.metrics.mcq import McqScores, score_questions
from eval.metrics.similarity import option_similarities
from eval.results import Item, Missing, Option, Score
from shards.companions import CompanionError, Question, Questions, read_companion, read_questions
from shards.schema import set_spec

_CURVE_POINTS = 50


@dataclass(frozen=True, kw_only=True, eq=False)
class McqAnswers:
    """A model's answers to questions."""

    sim_QK: np.ndarray  # float64 cosines; NaN for an option without an embedding, or beyond a question's options
    scores: McqScores


def read(context: Context) -> Questions:
    """Return the questions of the benchmark or of the configured file.

    Raises `CompanionError` if there are none, if they are malformed, or if the file's are about another set.
    """
    file = context.config.questions
    if file is None:
        where = f"{context.set_name}/{context.split}"
        questions = read_companion(context.source, context.set_name, context.split, Questions)
    else:
        where, questions = str(file), read_questions(file)
        if (questions.set, questions.split) != (context.set_name, context.split):
            raise CompanionError(
                f"{file}: its questions are about {questions.set}/{questions.split}, not "
                f"{context.set_name}/{context.split}; add --set {questions.set} --split {questions.split}"
            )
    if not questions.questions:
        raise CompanionError(f"{where}: holds no questions ({len(questions.rejected)} malformed ones)")
    return questions


def inputs(context: Context, questions: Questions) -> Inputs:
    """Return the texts and samples of the questions: all of the split's samples for its own questions."""
    is_of_file = context.config.questions is not None
    return Inputs(
        texts=[question.text for question in questions.questions], keys=questions.keys() if is_of_file else None
    )


def score(context: Context, questions: Questions, embeddings: Embeddings) -> BenchmarkOutput:
    """Score questions; the windows of long samples are aggregated in temporal order."""
    samples = embeddings.samples
    is_long = set_spec(context.set_name).is_long
    video_ND = context.aggregate(samples.vectors) if is_long else samples.vectors
    listed, captions = questions.questions, context.captions()
    answers = answer_questions(listed, embeddings.texts, video_ND, samples.index)
    groups = answers.scores.groups
    missing = [_missing(context, embeddings, question) for question in listed]
    malformed = [Missing(item=q.id, reason=f"malformed: {q.reason}") for q in questions.rejected]
    return BenchmarkOutput(
        name=questions.name,
        scores=_accuracies(context, questions.name, listed, answers.scores),
        items=[_item(q, answers, row, captions) for row, q in enumerate(listed) if answers.scores.is_scored_Q[row]],
        missing=[*(entry for entry in missing if entry is not None), *malformed],
        of=len(listed) + len(questions.rejected),
        curves={f"{group} accuracy by confidence": _accuracy_by_confidence(listed, answers, group) for group in groups},
        curve_axes={
            f"{group} accuracy by confidence": ("most confident share of questions (%)", "accuracy (%)")
            for group in groups
        },
    )


def answer_questions(
    questions: Sequence[Question], texts: TextEmbeddings, video_ND: np.ndarray, index: Mapping[str, int]
) -> McqAnswers:
    """Return the similarities and scores of questions.

    `video_ND` are the samples' embeddings, `index` maps a key to its row; a question with an option that is not in
    `index` is not scored.
    """
    text_QD = texts.of([question.text for question in questions])
    most = max((len(question.choices) for question in questions), default=0)
    choices_QK = np.full((len(questions), most), -1, np.int64)
    for row, question in enumerate(questions):
        choices_QK[row, : len(question.choices)] = [index.get(key, -1) for key in question.choices]
    sim_QK = option_similarities(text_QD, video_ND, choices_QK)
    scores = score_questions(
        sim_QK,
        [question.answer for question in questions],
        [question.type for question in questions],
        [len(question.choices) for question in questions],
    )
    return McqAnswers(sim_QK=sim_QK, scores=scores)


def _accuracies(context: Context, benchmark: str, questions: Sequence[Question], scores: McqScores) -> list[Score]:
    """Return the accuracy of each type of question with at least one scored question."""
    types = np.array([question.type for question in questions], dtype=object)
    found = []
    for group, accuracy in scores.groups.items():
        if accuracy.items:
            values_N = scores.score_Q[(types == group) & scores.is_scored_Q]
            name = f"{group} accuracy"
            found.append(
                context.mean_score(
                    benchmark, name, values_N, of=accuracy.of, chance=accuracy.chance, tied=accuracy.tied
                )
            )
    return found


def _item(question: Question, answers: McqAnswers, row: int, captions: Mapping[str, str]) -> Item:
    scores = answers.scores
    return Item(
        id=question.id,
        group=question.type,
        text=question.text,
        score=float(scores.score_Q[row]),
        answer=question.choices[question.answer],
        predicted=question.choices[int(scores.predicted_Q[row])],
        options=[
            Option(key=key, text=captions.get(key, ""), score=float(sim))
            for key, sim in zip(question.choices, answers.sim_QK[row], strict=False)
        ],
        note="tied" if scores.tied_Q[row] else "",
    )


def _missing(context: Context, embeddings: Embeddings, question: Question) -> Missing | None:
    """Return why a question is not scored: its first option without an embedding; None if all have one."""
    absent = [key for key in question.choices if key not in embeddings.samples.index]
    if not absent:
        return None
    more = f" (and {len(absent) - 1} more)" if len(absent) > 1 else ""
    reason = context.missing(embeddings.samples, absent[0]).reason
    return Missing(item=question.id, reason=f"{absent[0]}: {reason}{more}")


def _accuracy_by_confidence(
    questions: Sequence[Question], answers: McqAnswers, group: str
) -> list[tuple[float, float]]:
    """Return (share of a group's questions, their accuracy), both in percent, the most confident questions first.

    Confidence is the margin between the best and the second best option.
    """
    rows = [row for row, q in enumerate(questions) if q.type == group and answers.scores.is_scored_Q[row]]
    if not rows:
        return []
    options = np.sort(np.nan_to_num(answers.sim_QK[rows], nan=-np.inf), axis=1)
    order = np.argsort(-(options[:, -1] - options[:, -2]), kind="stable")
    means = np.cumsum(answers.scores.score_Q[rows][order]) / np.arange(1, len(rows) + 1)
    ends = np.unique(np.linspace(0, len(rows) - 1, _CURVE_POINTS).round().astype(int))
    return [(100 * (end + 1) / len(rows), float(means[end])) for end in ends.tolist()]
