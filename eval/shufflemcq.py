# PYTHON_ARGCOMPLETE_OK
"""ShuffleMCQ: a summary's windows in temporal order, or in one of four wrong orders; accuracy (HierVL, section 4).

    python eval/shufflemcq.py --checkpoint C --shards ROOT [--config F] [options=5] [key=value …]
    python eval/shufflemcq.py … --set summaries --split val     # any long set whose samples have texts

The questions are about the correct choices of SummaryMCQ, or about every sample of another long set and its own text.
The wrong orders depend on the seed and the question's id alone. A model that averages the windows cannot distinguish
orders: all options tie and it is at chance.

Shapes in names: Q questions, O orders, W windows, N orders of several questions, D width of the shared space.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from eval import mcq
from eval.benchmark import Benchmark, BenchmarkOutput, Context, Embeddings, Inputs
from eval.command import main
from eval.embed import TextEmbeddings
from eval.metrics.mcq import McqScores, ShuffleOptions, score_questions, shuffle_options
from eval.metrics.similarity import option_similarities
from eval.results import Item, Option
from shards.companions import CompanionError, Question
from shards.schema import set_spec

NAME, GROUP = "shufflemcq", "order"
_QUESTIONS_PER_BLOCK = 1024  # bounds memory


@dataclass(frozen=True, kw_only=True)
class OrderQuestion:
    """Which order of a sample's windows goes with a text?"""

    id: str
    key: str  # of the sample
    text: str


@dataclass(frozen=True, kw_only=True, eq=False)
class OrderAnswers:
    """A model's answers to order questions."""

    options: list[ShuffleOptions]
    sim_QO: np.ndarray  # float64 cosines; NaN beyond a question's options
    scores: McqScores


def read(context: Context) -> list[OrderQuestion]:
    """Return the questions; raise `CompanionError` if they are unusable, or if samples have fewer than 2 windows."""
    spec = set_spec(context.set_name)
    if not spec.is_long:
        raise CompanionError(f"set = {context.set_name}: shufflemcq needs a long set, whose samples have windows")
    if context.settings.windows < 2:
        raise CompanionError(f"sample.windows = {context.settings.windows}: at least 2 are needed for a wrong order")
    if context.config.questions is None and spec.companions.get(context.split) is None:
        captions = context.captions()
        return [OrderQuestion(id=key, key=key, text=text) for key, text in captions.items() if text.strip()]
    return order_questions(mcq.read(context).questions)


def order_questions(questions: Sequence[Question]) -> list[OrderQuestion]:
    """Return an order question about the correct choice of each multiple-choice question.

    It has the key of its sample as id, which lets the report show the video, unless two are about the same sample.
    """
    keys = [question.choices[question.answer] for question in questions]
    ids = keys if len(set(keys)) == len(keys) else [question.id for question in questions]
    return [
        OrderQuestion(id=name, key=key, text=question.text)
        for name, key, question in zip(ids, keys, questions, strict=True)
    ]


def inputs(context: Context, questions: Sequence[OrderQuestion]) -> Inputs:
    """Return the texts and samples of the questions."""
    return Inputs(texts=[question.text for question in questions], keys=[question.key for question in questions])


def score(context: Context, questions: Sequence[OrderQuestion], embeddings: Embeddings) -> BenchmarkOutput:
    """Score the orders of each sample's windows."""
    samples, config = embeddings.samples, context.config
    scored = [question for question in questions if question.key in samples.index]
    answers = answer_order_questions(
        scored,
        embeddings.texts,
        samples.vectors[[samples.index[question.key] for question in scored]],
        context.aggregate,
        options=config.options,
        seed=config.seed,
    )
    scores = []
    if scored:
        accuracy = answers.scores.groups[GROUP]
        values_Q, of = answers.scores.score_Q, len(questions)
        scores = [context.mean_score(NAME, "accuracy", values_Q, of=of, chance=accuracy.chance, tied=accuracy.tied)]
    return BenchmarkOutput(
        scores=scores,
        items=[_item(question, answers, row) for row, question in enumerate(scored)],
        missing=[context.missing(samples, q.key, item=q.id) for q in questions if q.key not in samples.index],
        of=len(questions),
    )


def answer_order_questions(
    questions: Sequence[OrderQuestion],
    texts: TextEmbeddings,
    windows_QWD: np.ndarray,
    aggregate: Callable[[np.ndarray], np.ndarray],
    *,
    options: int,
    seed: int,
) -> OrderAnswers:
    """Return the similarities and scores of order questions.

    `windows_QWD` are the windows' embeddings in temporal order. `aggregate` returns the embeddings (N, D) of long
    samples from those of their windows (N, W, D). `options` is the number of orders of a question.
    """
    shuffled: list[ShuffleOptions] = []
    blocks = []
    for start in range(0, len(questions), _QUESTIONS_PER_BLOCK):
        block = questions[start : start + _QUESTIONS_PER_BLOCK]
        orders = [shuffle_options(windows_QWD.shape[1], options, seed, question.id) for question in block]
        windows_NWD = np.concatenate(
            [windows_WD[one.orders_OW] for windows_WD, one in zip(windows_QWD[start:], orders, strict=False)]
        )
        counts = [len(one.orders_OW) for one in orders]
        rows_QO = np.full((len(block), max(counts)), -1, np.int64)
        for row, (begin, count) in enumerate(zip(np.cumsum([0, *counts]), counts, strict=False)):
            rows_QO[row, :count] = np.arange(begin, begin + count)
        text_QD = texts.of([question.text for question in block])
        blocks.append(option_similarities(text_QD, aggregate(windows_NWD), rows_QO))
        shuffled += orders
    # The number of orders depends on the number of windows alone, so all blocks have the same width.
    sim_QO = np.concatenate([*blocks, np.empty((0, blocks[0].shape[1] if blocks else 1))])
    scores = score_questions(sim_QO, [one.answer for one in shuffled], [GROUP] * len(shuffled))
    return OrderAnswers(options=shuffled, sim_QO=sim_QO, scores=scores)


def _item(question: OrderQuestion, answers: OrderAnswers, row: int) -> Item:
    options, scores = answers.options[row], answers.scores
    names = [" ".join(str(window + 1) for window in order) for order in options.orders_OW.tolist()]
    return Item(
        id=question.id,
        group=GROUP,
        text=question.text,
        score=float(scores.score_Q[row]),
        answer=names[options.answer],
        predicted=names[int(scores.predicted_Q[row])],
        options=[
            Option(key=name, text=f"windows {name}", score=float(sim))
            for name, sim in zip(names, answers.sim_QO[row], strict=True)
        ],
        note="tied" if scores.tied_Q[row] else "",
    )


BENCHMARK = Benchmark(
    name=NAME,
    set_name="summarymcq",
    split="test",
    title="ShuffleMCQ: the temporal order of a summary's windows among wrong orders",
    read=read,
    inputs=inputs,
    score=score,
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
