"""The HTML page of a benchmark's result: scores, curves, confusions, and the best and worst questions to look at."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.report import charts
from eval.report.document import clock, document, place, player, text
from eval.report.media import Clip
from eval.results import Item, Missing, Option, Result, Score

_QUESTIONS = 24  # best ones at most, and as many of the worst; divided among the groups
_OPTIONS = 10  # of a question at most; the right and the chosen one are always there
_PAIRS = 15  # confusions in words
_MISSING = 50  # items listed
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
    """Return, group by group, the questions answered best and worst, by score, then by margin."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item.group, []).append(item)
    count = max(2, _QUESTIONS // max(len(groups), 1))
    shown = []
    for group, members in groups.items():
        ranked = sorted(members, key=lambda item: (_number(item.score), _number(margin(item))))
        worst = [item for item in ranked if not item.score >= 100][:count]
        rest = ranked[len(worst) :] if len(worst) < count else ranked[count:]
        best = [item for item in reversed(rest) if item.score > 0][:count]
        shown.append(Shown(group=group, best=best, worst=worst))
    return shown


def margin(item: Item) -> float | None:
    """Return by how much the right option's score lies above the best of the others; None where it has none."""
    right = [option.score for option in item.options if option.key == item.answer]
    wrong = [option.score for option in item.options if option.key != item.answer]
    if not right or not wrong or not all(map(math.isfinite, (*right, *wrong))):
        return None
    return max(right) - max(wrong)


def keys_shown(shown: Sequence[Shown]) -> Iterator[str]:
    """Yield what may be the key of a clip in these questions, the likeliest to be looked at first."""
    columns = [[*group.worst, *group.best] for group in shown]
    for rank in range(max(map(len, columns), default=0)):
        for item in (column[rank] for column in columns if rank < len(column)):
            yield item.id
            yield from (option.key for option in _options(item))


def render(result: Result, shown: Sequence[Shown], clips: Mapping[str, Clip], notes: Sequence[str] = ()) -> bytes:
    """Return the page of a result; `clips` are those of the shown questions that could be had, `notes` what to say."""
    scored, asked = _counts(result)
    title = f"{result.benchmark}: {result.checkpoint}"
    notices = "".join(f'<div class="notice">{text(note)}</div>' for note in notes)
    if scored < asked:
        notices += (
            f'<div class="notice">{asked - scored:,} of {asked:,} items could not be scored; see below why.</div>'
        )
    body = [
        f"<h1>{text(result.benchmark)}</h1>",
        f'<div class="quiet">{text(result.checkpoint)} on {text(f"{result.set_name}/{result.split}")}, '
        f"{scored:,} of {asked:,} items, {text(result.made_at)}</div>",
        notices,
        _tiles(result.scores),
        _scores(result.scores),
        _curves(result),
        _confusions(result),
        *[_questions(group, clips, alone=len(shown) == 1) for group in shown],
        _missing(result.missing),
        _settings(result),
    ]
    return document(title, "".join(body))


def render_overview(results: Sequence[tuple[Result, str]]) -> bytes:
    """Return the page over several results, each with the address of its own page ("" where it has none)."""
    names = published_names([score for result, _ in results for score in result.scores])
    rows = []
    for result, address in results:
        link = f'<a href="{text(address)}">{text(result.benchmark)}</a>' if address else text(result.benchmark)
        for index, score in enumerate(result.scores):
            first = link if index == 0 else ""
            rows.append(f"<tr><td>{first}</td>{_score_cells(score, names)}</tr>")
    checkpoints = sorted({result.checkpoint for result, _ in results})
    parts = [f"<h3>{text(result.benchmark)}</h3>{_bars(result.scores, names)}" for result, _ in results]
    body = (
        f'<h1>Evaluation</h1><div class="quiet">{text(", ".join(checkpoints))}</div>'
        f'<div class="scroll"><table class="two"><tr><th>benchmark</th>{_score_head(names)}</tr>{"".join(rows)}'
        "</table></div>"
        f"{''.join(parts)}{_legend(names)}"
    )
    return document("Evaluation", body)


def published_names(scores: Sequence[Score]) -> list[str]:
    """Return who published figures for any of the scores, in order of appearance."""
    return list(dict.fromkeys(name for score in scores for name in score.published))


def number(value: float | None) -> str:
    """Return a score in percent as it is printed."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.1f}"


def interval(score: Score) -> str:
    """Return a score's bootstrap interval as it is printed."""
    return "–" if score.low is None or score.high is None else f"{number(score.low)} to {number(score.high)}"


def flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield settings as dotted names and texts."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)


def _counts(result: Result) -> tuple[int, int]:
    """Return how many items were scored, and how many the benchmark has: each group of items once."""
    scored = len(result.items)
    return scored, max(scored + len(result.missing), max((score.of for score in result.scores), default=0))


def _tiles(scores: Sequence[Score]) -> str:
    tiles = [f"<div class=tile><b>{number(score.value)}</b><span>{text(score.name)}</span></div>" for score in scores]
    return f'<div class="tiles">{"".join(tiles[:8])}</div>'


def _scores(scores: Sequence[Score]) -> str:
    if not scores:
        return '<p class="notice">Nothing was scored.</p>'
    names = published_names(scores)
    rows = "".join(f"<tr>{_score_cells(score, names)}</tr>" for score in scores)
    return (
        f"<h2>Scores<small>percent, with bootstrap 95 % intervals</small></h2>{_bars(scores, names)}{_legend(names)}"
        f'<div class="scroll"><table><tr>{_score_head(names)}</tr>{rows}</table></div>'
    )


def _bars(scores: Sequence[Score], names: Sequence[str]) -> str:
    values = [v for score in scores for v in (score.value, score.high, *score.published.values()) if v is not None]
    top = min(100.0, 10.0 * math.ceil(max((v for v in values if math.isfinite(v)), default=100.0) / 10 + 1e-9)) or 10.0
    dots = [charts.Dot(value=s.value, low=s.low, high=s.high, published=s.published) for s in scores]
    rows = "".join(
        f"<div><span>{text(score.name)}</span>{charts.strip(dot, names, top)}<b>{number(score.value)}</b></div>"
        for score, dot in zip(scores, dots, strict=True)
    )
    return f'<div class="bars">{rows}<div><span></span>{charts.scale(top)}<b></b></div></div>'


def _legend(names: Sequence[str]) -> str:
    marks = "".join(f'<span><i class="c{index % 6}"></i>{text(name)}</span>' for index, name in enumerate(names))
    return f'<div class="legend"><span><i class="dot"></i>this checkpoint</span>{marks}</div>'


def _score_head(names: Sequence[str]) -> str:
    fixed = ("score", "value", "95 %", "scored", "tied")
    return "".join(f"<th>{text(name)}</th>" for name in (*fixed, *names))


def _score_cells(score: Score, names: Sequence[str]) -> str:
    cells = [number(score.value), interval(score), f"{score.items:,} of {score.of:,}", f"{score.tied:,}"]
    cells += [number(score.published.get(name)) for name in names]
    return f"<td>{text(score.name)}</td>" + "".join(f"<td>{text(cell)}</td>" for cell in cells)


def _curves(result: Result) -> str:
    drawn = [charts.curve(name, points) for name, points in result.curves.items()]
    groups: dict[str, list[float]] = {}
    for item in result.items:
        found = margin(item)
        if found is not None:
            groups.setdefault(item.group, []).append(found)
    for group, margins in groups.items():
        right, wrong = [m for m in margins if m > 0], [m for m in margins if m <= 0]
        drawn.append(charts.histogram(f"Margins, {group}" if group else "Margins", right, wrong))
    note = "a margin is the right option's score less the best of the others; wrong answers left of 0" if groups else ""
    figures = "".join(drawn)
    return f'<h2>Curves<small>{note}</small></h2><div class="charts">{figures}</div>' if figures else ""


def _confusions(result: Result) -> str:
    parts = []
    if result.confusion is not None:
        labels, counts = result.confusion.labels, result.confusion.counts
        kept = _most_confused(counts)
        cut = [[counts[i][j] for j in kept] for i in kept]
        note = f"The {len(kept)} of {len(labels)} that are confused most. " if len(kept) < len(labels) else ""
        rows, columns = "what is right", "what was chosen"
        parts.append(charts.heat_map([labels[i] for i in kept], cut, rows=rows, columns=columns, note=note))
        parts.append(_pair_table(_label_pairs(labels, counts), "is", "taken for"))
    else:
        places = _positions(result.items)
        words = _word_pairs(result.items)
        if words:
            parts.append(_pair_table(words, "the right text says", "the chosen one instead"))
        if places:
            labels = [str(index + 1) for index in range(len(places))]
            rows, columns = "where the right option stood", "where the chosen one stood"
            parts.append(charts.heat_map(labels, places, rows=rows, columns=columns))
    return (
        f"<h2>Confusions</h2><div class=pair>{''.join(f'<div>{part}</div>' for part in parts)}</div>" if parts else ""
    )


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
    """Return how often the option at j was chosen where that at i was right; None unless all have as many options."""
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
    """Return which words stand in the right text and which instead in the chosen one, where few differ."""
    counts: Counter[tuple[str, str]] = Counter()
    for item in items:
        texts = {option.key: option.text for option in item.options}
        if item.answer == item.predicted or not texts.get(item.answer) or not texts.get(item.predicted):
            continue
        right, chosen = _words(texts[item.answer]), _words(texts[item.predicted])
        only_right, only_chosen = [w for w in right if w not in chosen], [w for w in chosen if w not in right]
        # The first that differs stands for the first, as in "opens the drawer" and "closes the fridge".
        if len(only_right) == len(only_chosen) <= 2:
            counts.update(zip(only_right, only_chosen, strict=True))
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return [(a, b, count) for (a, b), count in ranked[:_PAIRS]]


def _words(caption: str) -> list[str]:
    return [word for word in _WORD.findall(caption[:500].lower()) if word not in _STOP]


def _pair_table(pairs: Sequence[tuple[str, str, float]], first: str, second: str) -> str:
    if not pairs:
        return ""
    rows = "".join(f"<tr><td>{text(a)}</td><td>{text(b)}</td><td>{charts.short(n)}</td></tr>" for a, b, n in pairs)
    head = f"<tr><th>{text(first)}</th><th>{text(second)}</th><th>times</th></tr>"
    return f'<div class="scroll wrap"><table>{head}{rows}</table></div>'


def _questions(shown: Shown, clips: Mapping[str, Clip], *, alone: bool) -> str:
    """Return a group's best and worst questions."""
    name = "" if alone or not shown.group else f"{shown.group}: "
    parts = []
    for title, note, items in (
        ("answered worst", "the surest of the wrong first", shown.worst),
        ("answered best", "the surest of the right first", shown.best),
    ):
        if items:
            heading = f"{name}{title}"
            parts.append(f"<h2>{text(heading[0].upper() + heading[1:])}<small>{note}</small></h2>")
            parts += [_question(item, clips) for item in items]
    return "".join(parts)


def _question(item: Item, clips: Mapping[str, Clip]) -> str:
    options = _options(item)
    low = min((option.score for option in options if math.isfinite(option.score)), default=0.0)
    high = max((option.score for option in options if math.isfinite(option.score)), default=1.0)
    found = margin(item)
    tone = "good" if item.score >= 100 else "bad" if item.score <= 0 else ""
    facts = f"margin {found:+.3f}" if found is not None else ""
    asked = f'<p class="asked words" dir="auto">{text(item.text)}</p>' if item.text else ""
    query = f'<div class="query">{player(clips[item.id])}</div>' if item.id in clips else ""
    note = f'<p class="quiet words" dir="auto">{text(item.note)}</p>' if item.note else ""
    hidden = len(item.options) - len(options)
    more = f'<p class="quiet">and {hidden:,} more options with lower scores</p>' if hidden > 0 else ""
    # An answer that is no option is a class or a text of its own.
    named = "" if any(option.key == item.answer for option in options) else _named(item)
    has_films = any(option.key in clips for option in options)
    figures = "".join(_option(option, item, clips, low, high, has_films=has_films) for option in options)
    return (
        f'<section class="question"><header>{query}<div style="flex:1;min-width:0">{asked}'
        f'<span class="badge {tone}">score {number(item.score)}</span>'
        f'<span class="quiet">{facts}</span> <span class="mono quiet">{text(item.group)} {text(item.id)}</span>'
        f'{named}{note}</div></header><div class="options">{figures}</div>{more}</section>'
    )


def _named(item: Item) -> str:
    parts = [("right", "good", item.answer), ("chosen", "", item.predicted)]
    shown = "".join(
        f'<p class="words" dir="auto"><span class="badge {tone}">{name}</span>{text(value)}</p>'
        for name, tone, value in parts
        if value
    )
    return f"<div>{shown}</div>"


def _option(option: Option, item: Item, clips: Mapping[str, Clip], low: float, high: float, *, has_films: bool) -> str:
    clip = clips.get(option.key)
    is_right, is_chosen = option.key == item.answer, option.key == item.predicted
    kinds = " ".join(name for name, holds in (("right", is_right), ("chosen", is_chosen)) if holds)
    badges = '<span class="badge good">right</span>' if is_right else ""
    if is_chosen:
        badges += f'<span class="badge {"good" if is_right else "bad"}">chosen</span>'
    share = (option.score - low) / (high - low) if high > low and math.isfinite(option.score) else 1.0
    caption = option.text or (clip.text if clip else "")
    media = player(clip, "clip not shown") if has_films else ""
    where = f"{text(place(clip))}<br>" if clip else ""
    return (
        f'<figure class="{kinds}">{media}<figcaption><div>{badges}{text(f"{option.score:.3f}")}</div>'
        f'<div class="meter"><i style="width:{100 * share:.0f}%"></i></div>'
        f'<p class="words" dir="auto">{text(caption)}</p><div class="mono">{where}{text(option.key)}</div>'
        "</figcaption></figure>"
    )


def _options(item: Item) -> list[Option]:
    """Return the options that are shown: all where they are few, else the highest, the right and the chosen one."""
    if len(item.options) <= _OPTIONS:
        return list(item.options)
    ranked = sorted(item.options, key=lambda option: -_number(option.score))
    named = [option for option in ranked if option.key in (item.answer, item.predicted)]
    others = [option for option in ranked if option not in named]
    kept = [*named, *others][:_OPTIONS]
    return [option for option in ranked if option in kept]


def _missing(missing: Sequence[Missing]) -> str:
    if not missing:
        return ""
    reasons = Counter(entry.reason for entry in missing)
    counts = "".join(f"<tr><td>{text(reason)}</td><td>{n:,}</td></tr>" for reason, n in reasons.most_common(_PAIRS))
    rows = "".join(f"<tr><td>{text(e.item)}</td><td>{text(e.reason)}</td></tr>" for e in missing[:_MISSING])
    note = f"the first {_MISSING} of {len(missing):,}" if len(missing) > _MISSING else f"all {len(missing):,}"
    return (
        f'<h2>Not scored</h2><div class="scroll wrap"><table><tr><th>why</th><th>items</th></tr>{counts}</table></div>'
        f'<h3>{note}</h3><div class="scroll wrap"><table><tr><th>item</th><th>why</th></tr>{rows}</table></div>'
    )


def _settings(result: Result) -> str:
    facts = {
        "dataset": result.root,
        "fingerprint": result.fingerprint,
        "checkpoint": result.checkpoint,
        "checkpoint digest": result.checkpoint_digest,
        "machine": result.machine,
        "took": clock(result.seconds),
        "made": result.made_at,
    }
    rows = [*flatten(facts), *flatten(result.settings)]
    cells = "".join(f'<tr><td>{text(name)}</td><td class="mono">{text(value)}</td></tr>' for name, value in rows)
    return f'<details><summary>Settings</summary><div class="scroll wrap"><table>{cells}</table></div></details>'


def _number(value: float | None) -> float:
    """Return what to sort by: what is no number comes last."""
    return float("-inf") if value is None or math.isnan(value) else value
