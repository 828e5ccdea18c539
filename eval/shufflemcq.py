"""ShuffleMCQ: a summary's windows in their order, or in one of four wrong orders; accuracy (HierVL, section 4).

    python eval/shufflemcq.py --checkpoint C --shards ROOT [--config F] [options=5] [key=value …]
    python eval/shufflemcq.py … --set summaries --split val     # any long set whose samples have texts

Asked of the right choices of SummaryMCQ with the summary that each answers, or of each sample of another long set with
its own text. The wrong orders follow from the seed and the question's id, and are never the right one. A model that
takes the mean of the windows cannot tell orders apart: all options tie and it is at chance.

Shapes in names: Q questions, O orders, W windows, D width of the shared space.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from eval.benchmark import Benchmark, BenchmarkOutput, Context, main
from eval.egomcq import questions_of
from eval.embed import Texts
from eval.metrics.bootstrap import interval_of_mean
from eval.metrics.mcq import Marks, ShuffleOptions, score_questions, shuffle_options
from eval.metrics.similarity import option_similarities
from eval.results import Item, Missing, Option
from shards.companions import CompanionError
from shards.schema import set_spec

NAME, GROUP = "shufflemcq", "order"
_AT_ONCE = 1024  # questions whose orders are held at a time


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A summary and the sample that shows it."""

    id: str
    key: str
    text: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Shuffled:
    """What a model made of the questions."""

    options: list[ShuffleOptions]
    sim_QO: np.ndarray  # float64; NaN where a question has fewer options
    marks: Marks


def evaluate(context: Context) -> BenchmarkOutput | None:
    """Score the orders of each summary's windows."""
    if not set_spec(context.set_name).is_long:
        raise CompanionError(f"--set {context.set_name}: shufflemcq needs a long set, whose samples have windows")
    if context.settings.windows < 2:
        raise CompanionError(f"windows = {context.settings.windows}: the order of fewer than 2 cannot be wrong")
    asked = _asked(context)
    embedded = context.embed(keys=[one.key for one in asked])
    texts = context.texts([one.text for one in asked])
    if embedded is None or texts is None:
        return None
    index = embedded.index
    known = [one for one in asked if one.key in index]
    lost = [one for one in asked if one.key not in index]
    windows_QWD = embedded.vectors[[index[one.key] for one in known]]
    config = context.config
    shuffled = shuffle(known, texts, windows_QWD, context.aggregate, options=config.options, seed=config.seed)
    scores = []
    if known:
        total = shuffled.marks.groups[GROUP]
        interval = interval_of_mean(shuffled.marks.score_Q, seed=config.seed, resamples=config.resamples)
        scores = [
            context.score(NAME, "accuracy", total.accuracy, interval, items=total.items, of=len(asked), tied=total.tied)
        ]
    return BenchmarkOutput(
        scores=scores,
        items=[_item(one, shuffled, row) for row, one in enumerate(known)],
        missing=[Missing(item=one.id, reason=f"{one.key}: {context.why(embedded, one.key)}") for one in lost],
        of=len(asked),
    )


def shuffle(
    asked: Sequence[Asked],
    texts: Texts,
    windows_QWD: np.ndarray,
    pool: Callable[[np.ndarray], np.ndarray],
    *,
    options: int,
    seed: int,
) -> Shuffled:
    """Return the marks of questions whose windows' embeddings are given in their right order.

    `pool` makes embeddings of long samples, (N, D), of those of their windows, (N, W, D), by their order.
    """
    found: list[ShuffleOptions] = []
    rows = []
    for start in range(0, len(asked), _AT_ONCE):
        part = asked[start : start + _AT_ONCE]
        made = [shuffle_options(windows_QWD.shape[1], options, seed, one.id) for one in part]
        orders = [windows_WD[one.orders_OW] for windows_WD, one in zip(windows_QWD[start:], made, strict=False)]
        video_ND = pool(np.concatenate(orders))
        counts = [len(one.orders_OW) for one in made]
        places_QO = np.full((len(part), max(counts)), -1, np.int64)
        for row, (begin, count) in enumerate(zip(np.cumsum([0, *counts]), counts, strict=False)):
            places_QO[row, :count] = np.arange(begin, begin + count)
        rows.append(option_similarities(texts.of([one.text for one in part]), video_ND, places_QO))
        found += made
    # Two windows have only one wrong order, three have five: all questions have the same number of options.
    sim_QO = np.concatenate([*rows, np.empty((0, rows[0].shape[1] if rows else 1))])
    marks = score_questions(sim_QO, [one.answer for one in found], [GROUP] * len(found))
    return Shuffled(options=found, sim_QO=sim_QO, marks=marks)


def _asked(context: Context) -> list[Asked]:
    """Return the summaries to ask for: those of the questions, or each sample of the set with its own text."""
    if context.config.questions is None and set_spec(context.set_name).companions.get(context.split) is None:
        captions = context.captions()
        return [Asked(id=key, key=key, text=text) for key, text in captions.items() if text.strip()]
    asked = questions_of(context).questions
    keys = [question.choices[question.answer] for question in asked]
    # Named by what they show where that names them: a page then has the film.
    ids = keys if len(set(keys)) == len(keys) else [question.id for question in asked]
    return [Asked(id=i, key=key, text=question.text) for i, key, question in zip(ids, keys, asked, strict=True)]


def _item(one: Asked, shuffled: Shuffled, row: int) -> Item:
    options, sims = shuffled.options[row], shuffled.sim_QO[row]
    names = [" ".join(str(window + 1) for window in order) for order in options.orders_OW.tolist()]
    return Item(
        id=one.id,
        group=GROUP,
        text=one.text,
        score=float(shuffled.marks.score_Q[row]),
        answer=names[options.answer],
        predicted=names[int(shuffled.marks.predicted_Q[row])],
        options=[Option(key=n, text=f"windows {n}", score=float(s)) for n, s in zip(names, sims, strict=True)],
        note="tied" if shuffled.marks.tied_Q[row] else "",
    )


BENCHMARK = Benchmark(
    name=NAME, set_name="summarymcq", split="test", evaluate=evaluate, title="ShuffleMCQ: windows in their order?"
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
