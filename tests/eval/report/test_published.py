"""Published scores are shown for the real benchmarks only."""

from __future__ import annotations

from eval.report.published import published


def test_published_scores_are_shown_for_benchmarks_of_real_size_only() -> None:
    assert published("egomcq", "inter accuracy", of=19_000)["HierVL-SA"] == 90.5
    assert published("egomcq", "inter accuracy", of=19) == {}
    assert published("mine", "inter accuracy", of=19_000) == {}
