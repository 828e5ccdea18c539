"""The HTML page of a benchmark's result: scores, curves, confusions, best and worst answers with their clips."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.report.media import Clip, show, when
from eval.results import Item, Missing, Option, Result, Score
from shards.html import charts
from shards.html.elements import Html, badge, clock, facts, folded, heading, notice, short, table, tag, tile, tiles

_QUESTIONS = 24  # best and worst questions shown, each; divided among the groups
_OPTIONS = 10  # options shown of a question; the right and the chosen one always are
_PAIRS = 15  # rows of the tables of confusions and of reasons
_MISSING = 50  # unscored items listed
_WORD = re.compile(r"[\w'-]+")
_STOP = frozenset(
    {"a", "an", "the", "of", "in", "on", "to", "with", "and", "from", "at", "c", "o", "x", "y", "summary"}
)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """The questions of one group that a page shows, most confident first."""

    group: str
    best: list[Item]
    worst: list[Item]


def choose(items: Sequence[Item]) -> list[Shown]:
    """Return, group by group, the questions answered best and worst: by score, then by margin."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item.group, []).append(item)
    count = max(2, _QUESTIONS // max(len(groups), 1))
    shown = []
    for group, members in groups.items():
        ranked = sorted(members, key=lambda item: (_sortable(item.score), _sortable(margin(item))))
        worst = [item for item in ranked if not item.score >= 100][:count]
        rest = ranked[len(worst) :] if len(worst) < count else ranked[count:]
        best = [item for item in reversed(rest) if item.score > 0][:count]
        shown.append(Shown(group=group, best=best, worst=worst))
    return shown


def margin(item: Item) -> float | None:
    """Return the right option's score minus the best of the other options'; None if there are not both."""
    right = [option.score for option in item.options if option.key == item.answer]
    wrong = [option.score for option in item.options if option.key != item.answer]
    if not right or not wrong or not all(map(math.isfinite, (*right, *wrong))):
        return None
    return max(right) - max(wrong)


def keys_shown(shown: Sequence[Shown]) -> Iterator[str]:
    """Yield every key that may be a clip of these questions, in the order in which they are worth showing."""
    columns = [[*group.worst, *group.best] for group in shown]
    for rank in range(max(map(len, columns), default=0)):
        for item in (column[rank] for column in columns if rank < len(column)):
            yield item.id
            yield from (option.key for option in _options(item))


def render(
    result: Result, shown: Sequence[Shown], clips: Mapping[str, Clip], notes: Sequence[str] = ()
) -> list[object]:
    """Return the body of a result's page. `clips` are those copied for the `shown` questions, `notes` are warnings."""
    scored, asked = _counts(result)
    where = f"{result.checkpoint} on {result.set_name}/{result.split}, {scored:,} of {asked:,} items, {result.made_at}"
    return [
        tag("h1", result.benchmark),
        tag("div", where, class_="quiet"),
        [notice(note) for note in notes],
        notice(f"{asked - scored:,} of {asked:,} items could not be scored; see below.") if scored < asked else None,
        tiles(_tile(score) for score in result.scores[:8]),
        _scores(result.scores),
        _curves(result),
        _confusions(result),
        [_questions(group, clips, is_alone=len(shown) == 1) for group in shown],
        _missing(result.missing),
        _settings(result),
    ]


def render_overview(results: Sequence[tuple[Result, str]]) -> list[object]:
    """Return the body of the page over several results, each with the address of its own page ("" if none)."""
    names = published_names(score for result, _ in results for score in result.scores)
    rows = []
    for result, address in results:
        link = tag("a", result.benchmark, href=address) if address else result.benchmark
        rows += [(tag("span", link, f" · {s.name}"), *score_cells(s, names)) for s in result.scores]
    checkpoints = sorted({result.checkpoint for result, _ in results})
    return [
        tag("h1", "Evaluation"),
        tag("div", ", ".join(checkpoints), class_="quiet"),
        table(score_head(names), rows),
        heading("Scores by benchmark", "percent, with bootstrap 95 % intervals"),
        tag("div", [_score_chart(result.benchmark, result.scores) for result, _ in results], class_="charts"),
    ]


def _tile(score: Score) -> Html:
    if score.unit != "%":
        return tile(f"{score.unit} {number(score.value)}", score.name, f"95 %: {interval(score)}")
    return tile(f"{number(score.value)} %", score.name, f"chance {number(score.chance)} %")


def published_names(scores: Iterable[Score]) -> list[str]:
    """Return the models with published values for any of the scores, in order of appearance."""
    return list(dict.fromkeys(name for score in scores for name in score.published))


def score_head(names: Sequence[str]) -> list[str]:
    """Return the column names of a table of scores, the last of them models with published values."""
    return ["score", "percent", "95 %", "chance", "scored", "tied", *names]


def score_cells(score: Score, names: Sequence[str]) -> list[str]:
    """Return a score's row of that table, without its first cell, the name."""
    counts = [f"{score.items:,} of {score.of:,}", f"{score.tied:,}"]
    published = [number(score.published.get(name)) for name in names]
    value = number(score.value) if score.unit == "%" else f"{score.unit} {number(score.value)}"
    return [value, interval(score), number(score.chance), *counts, *published]


def number(value: float | None) -> str:
    """Return a percentage with one decimal, or a dash."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.1f}"


def interval(score: Score) -> str:
    """Return a score's bootstrap interval, or a dash."""
    return "–" if score.low is None or score.high is None else f"{number(score.low)} to {number(score.high)}"


def flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield nested settings as (dotted name, value) pairs."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)


def _counts(result: Result) -> tuple[int, int]:
    """Return how many items were scored, and how many the benchmark has; an item of two groups counts twice."""
    scored = len(result.items)
    return scored, max(scored + len(result.missing), max((score.of for score in result.scores), default=0))


def _scores(scores: Sequence[Score]) -> list[Html]:
    if not scores:
        return [notice("Nothing was scored.")]
    names = published_names(scores)
    return [
        heading("Scores", "percent, with bootstrap 95 % intervals; chance is the score of a random ranking"),
        _score_chart("Scores", scores),
        table(score_head(names), [(score.name, *score_cells(score, names)) for score in scores]),
    ]


def _score_chart(title: str, scores: Sequence[Score]) -> Html:
    rows = [
        charts.Interval(name=s.name, value=s.value, low=s.low, high=s.high, chance=s.chance, others=s.published)
        for s in scores
        if s.unit == "%"
    ]
    return charts.intervals(title, rows, x_title="score (%)", name="this checkpoint")


def _curves(result: Result) -> list[Html]:
    drawn = []
    for name, points in result.curves.items():
        x_title, y_title = result.curve_axes.get(name, ("", ""))
        line = charts.Series(name="", x=[x for x, _ in points], y=[y for _, y in points])
        drawn.append(charts.lines(name, [line], x_title=x_title, y_title=y_title, from_zero=True))
    groups: dict[str, list[float]] = {}
    for item in result.items:
        found = margin(item)
        if found is not None:
            groups.setdefault(item.group, []).append(found)
    for group, margins in groups.items():
        answers = {"right": [m for m in margins if m > 0], "wrong": [m for m in margins if m <= 0]}
        title = f"Margins, {group}" if group else "Margins"
        drawn.append(charts.histogram(title, answers, x_title="margin (difference of scores)", y_title="questions"))
    note = "a margin is the right option's score minus the best of the others': wrong answers are left of 0"
    figures = [figure for figure in drawn if figure]
    return [heading("Curves", note if groups else None), tag("div", figures, class_="charts")] if figures else []


def _confusions(result: Result) -> list[Html]:
    parts: list[Html] = []
    if result.confusion is not None:
        labels, counts = result.confusion.labels, result.confusion.counts
        kept = _most_confused(counts)
        cut = [[counts[i][j] for j in kept] for i in kept]
        note = f"The {len(kept)} of {len(labels)} classes that are confused most." if len(kept) < len(labels) else ""
        names = [labels[i] for i in kept]
        parts.append(charts.heat_map("Classes", names, cut, x_title="predicted class", y_title="true class", note=note))
        parts += _pair_table(_label_pairs(labels, counts), "true class", "predicted class")
    else:
        parts += _pair_table(_word_pairs(result.items), "the right text says", "the chosen one says")
        places = _positions(result.items)
        if places:
            names = [str(index + 1) for index in range(len(places))]
            titles = {"x_title": "place of the chosen option", "y_title": "place of the right option"}
            parts.append(charts.heat_map("Choices by place", names, places, **titles))
    return [heading("Confusions"), tag("div", parts, class_="pair")] if parts else []


def _label_pairs(labels: Sequence[str], counts: Sequence[Sequence[float]]) -> list[tuple[str, str, float]]:
    pairs = [
        (labels[i], labels[j], value)
        for i, row in enumerate(counts)
        for j, value in enumerate(row)
        if i != j and value > 0
    ]
    return sorted(pairs, key=lambda pair: -pair[2])[:_PAIRS]


def _most_confused(counts: Sequence[Sequence[float]]) -> list[int]:
    """Return the classes that a heat map shows, in their order: those with most confusions, either way."""
    size = len(counts)
    off = [sum(counts[i]) + sum(row[i] for row in counts) - 2 * counts[i][i] for i in range(size)]
    return sorted(sorted(range(size), key=lambda i: (-off[i], i))[: charts.MAX_CELLS])


def _positions(items: Sequence[Item]) -> list[list[int]] | None:
    """Return how often option j was chosen when option i was right; None unless all items have as many options."""
    sizes = {len(item.options) for item in items}
    if len(sizes) != 1 or not 2 <= (size := sizes.pop()) <= charts.MAX_CELLS:
        return None
    counts = [[0] * size for _ in range(size)]
    for item in items:
        keys = [option.key for option in item.options]
        if item.answer in keys and item.predicted in keys:
            counts[keys.index(item.answer)][keys.index(item.predicted)] += 1
    return counts if any(map(any, counts)) else None


def _word_pairs(items: Sequence[Item]) -> list[tuple[str, str, float]]:
    """Return which words of the right text the chosen one replaces by which, where the two differ in few words."""
    counts: Counter[tuple[str, str]] = Counter()
    for item in items:
        texts = {option.key: option.text for option in item.options}
        if item.answer == item.predicted or not texts.get(item.answer) or not texts.get(item.predicted):
            continue
        right, chosen = _words(texts[item.answer]), _words(texts[item.predicted])
        only_right, only_chosen = [w for w in right if w not in chosen], [w for w in chosen if w not in right]
        # Words are paired in order, as in "opens the drawer" and "closes the fridge".
        if len(only_right) == len(only_chosen) <= 2:
            counts.update(zip(only_right, only_chosen, strict=True))
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return [(a, b, count) for (a, b), count in ranked[:_PAIRS]]


def _words(caption: str) -> list[str]:
    return [word for word in _WORD.findall(caption[:500].lower()) if word not in _STOP]


def _pair_table(pairs: Sequence[tuple[str, str, float]], first: str, second: str) -> list[Html]:
    return [table([first, second, "times"], [(a, b, short(n)) for a, b, n in pairs], align="llr")] if pairs else []


def _questions(shown: Shown, clips: Mapping[str, Clip], *, is_alone: bool) -> list[object]:
    """Return a group's worst and best questions."""
    name = "" if is_alone or not shown.group else f"{shown.group}: "
    parts: list[object] = []
    for title, note, items in (
        ("answered worst", "most confident wrong answers first", shown.worst),
        ("answered best", "most confident right answers first", shown.best),
    ):
        if items:
            full = f"{name}{title}"
            parts += [heading(full[0].upper() + full[1:], note), [_question(item, clips) for item in items]]
    return parts


def _question(item: Item, clips: Mapping[str, Clip]) -> Html:
    options = _options(item)
    finite = [option.score for option in options if math.isfinite(option.score)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    found = margin(item)
    hidden = len(item.options) - len(options)
    has_clips = any(option.key in clips for option in options)
    about = tag(
        "div",
        tag("p", item.text, class_="title words clamp", dir="auto") if item.text else None,
        badge(f"score {number(item.score)}", "good" if item.score >= 100 else "bad" if item.score <= 0 else ""),
        tag("span", f"margin {found:+.3f} ", class_="quiet") if found is not None else None,
        tag("span", f"{item.group} {item.id}", class_="mono quiet"),
        # An answer that is no option is a class or a text of its own.
        None if any(option.key == item.answer for option in options) else _answer(item),
        tag("p", item.note, class_="quiet words clamp", dir="auto") if item.note else None,
    )
    lead = tag("div", show(clips[item.id]), class_="lead") if item.id in clips else None
    figures = [_option(option, item, clips, low, high, has_clips=has_clips) for option in options]
    return tag(
        "section",
        tag("header", lead, about),
        tag("div", figures, class_="options"),
        tag("p", f"and {hidden:,} more options with lower scores", class_="quiet") if hidden > 0 else None,
        class_="item",
    )


def _answer(item: Item) -> list[Html]:
    parts = [("right", "good", item.answer), ("chosen", "", item.predicted)]
    return [tag("p", badge(name, tone), value, class_="words", dir="auto") for name, tone, value in parts if value]


def _option(option: Option, item: Item, clips: Mapping[str, Clip], low: float, high: float, *, has_clips: bool) -> Html:
    clip = clips.get(option.key)
    is_right, is_chosen = option.key == item.answer, option.key == item.predicted
    share = (option.score - low) / (high - low) if high > low and math.isfinite(option.score) else 1.0
    caption = tag(
        "figcaption",
        tag(
            "div",
            badge("right", "good") if is_right else None,
            badge("chosen", "good" if is_right else "bad") if is_chosen else None,
            f"{option.score:.3f}",
        ),
        tag("div", tag("i", style=f"width:{100 * share:.0f}%"), class_="meter"),
        tag("p", option.text or (clip.text if clip else ""), class_="words clamp", dir="auto"),
        tag("div", [when(clip), tag("br")] if clip else None, option.key, class_="mono"),
    )
    kinds = " ".join(name for name, holds in (("right", is_right), ("chosen", is_chosen)) if holds)
    return tag("figure", show(clip) if has_clips else None, caption, class_=kinds or None)


def _options(item: Item) -> list[Option]:
    """Return the options that are shown: all if they are few, else the best, the right and the chosen one."""
    if len(item.options) <= _OPTIONS:
        return list(item.options)
    ranked = sorted(item.options, key=lambda option: -_sortable(option.score))
    named = [option for option in ranked if option.key in (item.answer, item.predicted)]
    others = [option for option in ranked if option not in named]
    kept = [*named, *others][:_OPTIONS]
    return [option for option in ranked if option in kept]


def _missing(missing: Sequence[Missing]) -> list[Html]:
    if not missing:
        return []
    reasons = Counter(entry.reason for entry in missing).most_common(_PAIRS)
    note = f"the first {_MISSING} of {len(missing):,}" if len(missing) > _MISSING else f"all {len(missing):,}"
    return [
        heading("Not scored"),
        table(["reason", "items"], [(reason, f"{count:,}") for reason, count in reasons]),
        folded(f"Items, {note}", facts((entry.item, entry.reason) for entry in missing[:_MISSING])),
    ]


def _settings(result: Result) -> Html:
    about = {
        "dataset": result.root,
        "fingerprint": result.fingerprint,
        "checkpoint": result.checkpoint,
        "checkpoint digest": result.checkpoint_digest,
        "machine": result.machine,
        "duration": clock(result.seconds),
        "made": result.made_at,
    }
    return folded("Settings", facts([*flatten(about), *flatten(result.settings)]))


def _sortable(value: float | None) -> float:
    """Return a sort key that puts what is no number first."""
    return float("-inf") if value is None or math.isnan(value) else value
