"""Retrieval scores equal slow, direct implementations of the official definitions, on real and on degenerate inputs."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.metrics.retrieval import score_retrieval
from eval.metrics.similarity import cosine, dual_softmax
from hiervl_train.relevancy import Classes, Relevancy
from tests.hiervl_train.test_relevancy import direct_relevancy
from tests.paths import REPOSITORY, shared


def direct_ap(relevancies: list[float], *, graded: bool) -> float:
    """The evaluation program's AP of one ranked list."""
    total, cumulated = 0.0, 0.0
    for rank, value in enumerate(relevancies, start=1):
        cumulated += value if graded else float(value == 1)
        if value == 1:
            total += cumulated / rank
    return total / sum(value == 1 for value in relevancies)


def direct_ndcg(relevancies: list[float]) -> float:
    """The evaluation program's nDCG of one ranked list."""
    cut = sum(value > 0 for value in relevancies)

    def gain(values: list[float]) -> float:
        return sum(value / np.log2(rank + 1) for rank, value in enumerate(values, start=1) if rank <= cut)

    return gain(relevancies) / gain(sorted(relevancies, reverse=True))


def orders_of(scores: list[float]) -> list[tuple[int, ...]]:
    """Every order of the items that the scores allow."""
    runs = [[i for i, s in enumerate(scores) if s == score] for score in sorted(set(scores), reverse=True)]
    return [tuple(itertools.chain(*choice)) for choice in itertools.product(*map(itertools.permutations, runs))]


def random_classes(rng: np.random.Generator, items: int, *, verbs: int = 3, nouns: int = 4) -> Classes:
    sets = [rng.integers(0, nouns, rng.integers(1, 4)).tolist() for _ in range(items)]
    return Classes.of(rng.integers(0, verbs, items).tolist(), sets)


def relevancy_of(matrix: np.ndarray) -> Relevancy:
    """A relevancy whose rows are those of a matrix, for cases that no classes make."""

    class Given(Relevancy):
        def __init__(self, matrix: np.ndarray) -> None:
            self.shape, self._matrix = matrix.shape, matrix

        @property
        def T(self) -> Relevancy:
            return Given(self._matrix.T)

        def rows_of(self, indices: np.ndarray) -> np.ndarray:
            return self._matrix[indices].copy()

    return Given(matrix)


@pytest.mark.parametrize(("videos", "sentences", "block"), [(23, 17, 5), (1, 9, 256), (9, 1, 2), (1, 1, 1)])
def test_scores_are_those_of_the_official_definitions_where_nothing_ties(
    videos: int, sentences: int, block: int
) -> None:
    rng = np.random.default_rng(videos)
    of_sentences = random_classes(rng, sentences)
    of_videos = Classes.of(
        of_sentences.verbs_N[np.arange(videos) % sentences].tolist(),
        [of_sentences.nouns[i % sentences].tolist() for i in range(videos)],
    )
    relevancy = direct_relevancy(of_videos, of_sentences)
    sim_VS = rng.permutation(videos * sentences).reshape(videos, sentences) / 1000
    result = score_retrieval(sim_VS, Relevancy(of_videos, of_sentences), block=block)
    for direction, sim, matrix in (
        (result.video_to_text, sim_VS, relevancy),
        (result.text_to_video, sim_VS.T, relevancy.T),
    ):
        kept = [query for query in range(len(sim)) if (matrix[query] == 1).any()]
        lists = [[matrix[query, item] for item in np.argsort(-sim[query])] for query in kept]
        assert direction.scored == len(kept) and direction.of == len(sim) and direction.tied == 0
        assert direction.map == pytest.approx(100 * np.mean([direct_ap(values, graded=True) for values in lists]))
        assert direction.strict_map == pytest.approx(
            100 * np.mean([direct_ap(values, graded=False) for values in lists])
        )
        some = [[m[i] for i in np.argsort(-s)] for m, s in zip(matrix, sim, strict=True) if m.any()]
        assert direction.ndcg == pytest.approx(100 * np.mean([direct_ndcg(values) for values in some]))
        assert direction.best_Q.tolist() == sim.argmax(axis=1).tolist()
    assert result.map == (result.video_to_text.map + result.text_to_video.map) / 2
    assert result.ndcg == (result.video_to_text.ndcg + result.text_to_video.ndcg) / 2


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.sampled_from([-1.0, 0.0, 0.5])), min_size=1, max_size=6
    )
)
def test_ties_give_the_mean_over_all_orders(items: list[tuple[float, float]]) -> None:
    relevancies, scores = [item[0] for item in items], [item[1] for item in items]
    orders = orders_of(scores)
    result = score_retrieval(np.array([scores]), relevancy_of(np.array([relevancies]))).video_to_text
    lists = [[relevancies[i] for i in order] for order in orders]
    if 1.0 in relevancies:
        assert result.map == pytest.approx(100 * np.mean([direct_ap(values, graded=True) for values in lists]))
        assert result.strict_map == pytest.approx(100 * np.mean([direct_ap(values, graded=False) for values in lists]))
    else:
        assert result.scored == 0 and np.isnan(result.map)
    if any(relevancies):
        assert result.ndcg == pytest.approx(100 * np.mean([direct_ndcg(values) for values in lists]))
    else:
        assert np.isnan(result.ndcg)
    runs = [{relevancies[i] for i in range(len(scores)) if scores[i] == score} for score in set(scores)]
    assert result.tied == any(len(run) > 1 for run in runs)


def test_a_query_without_a_relevant_item_is_not_scored() -> None:
    relevancy = np.array([[1.0, 0.5], [0.5, 0.0], [0.0, 0.0]])
    result = score_retrieval(np.array([[0.9, 0.1]] * 3), relevancy_of(relevancy)).video_to_text
    assert (result.scored, result.of) == (1, 3)
    assert result.map == 100 and np.isfinite(result.ndcg_Q).tolist() == [True, True, False]


def test_collapsed_embeddings_score_at_chance_and_all_queries_are_tied() -> None:
    rng = np.random.default_rng(0)
    classes = random_classes(rng, 300, verbs=5, nouns=8)
    text, video = np.full((300, 17), 0.37), np.full((300, 17), -1.21)
    relevancy = Relevancy(classes, classes)
    for sim_VS in (cosine(video, text), dual_softmax(text, video, np.arange(300))):
        result = score_retrieval(sim_VS, relevancy)
        assert result.video_to_text.tied == result.text_to_video.tied == 300
        shuffled = [score_retrieval(rng.random((300, 300)), relevancy) for _ in range(8)]
        assert result.map == pytest.approx(np.mean([other.map for other in shuffled]), abs=0.5)
        assert result.ndcg == pytest.approx(np.mean([other.ndcg for other in shuffled]), abs=0.5)


def test_scores_do_not_depend_on_the_order_of_videos_or_sentences() -> None:
    rng = np.random.default_rng(1)
    of_videos, of_sentences = random_classes(rng, 40), random_classes(rng, 30)
    video, text = rng.integers(-1, 2, (40, 3)).astype(float), rng.integers(-1, 2, (30, 3)).astype(float)
    first = score_retrieval(cosine(video, text), Relevancy(of_videos, of_sentences), block=7)
    assert first.video_to_text.tied > 0
    v, s = rng.permutation(40), rng.permutation(30)

    def taken(classes: Classes, rows: np.ndarray) -> Classes:
        return Classes.of(classes.verbs_N[rows].tolist(), [classes.nouns[i].tolist() for i in rows])

    second = score_retrieval(cosine(video[v], text[s]), Relevancy(taken(of_videos, v), taken(of_sentences, s)))
    assert second.map == pytest.approx(first.map, abs=1e-9) and second.ndcg == pytest.approx(first.ndcg, abs=1e-9)
    np.testing.assert_allclose(second.video_to_text.ap_Q, first.video_to_text.ap_Q[v], atol=1e-9)


def test_similarities_and_relevancy_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 2\)"):
        score_retrieval(np.zeros((2, 3)), relevancy_of(np.zeros((2, 2))))


CHANCE = """
import ast, csv, json, resource, sys, time
import numpy as np
from hiervl_train.relevancy import Classes, Relevancy
from eval.metrics.retrieval import score_retrieval
from eval.metrics.similarity import cosine, dual_softmax

def rows(path):
    with open(path, encoding="utf-8") as file:
        return list(csv.DictReader(file))

def classes(rows):
    nouns = [ast.literal_eval(row["all_noun_classes"]) for row in rows]
    return Classes.of([int(row["verb_class"]) for row in rows], nouns)

videos = rows(sys.argv[1] + "/EPIC_100_retrieval_test.csv")
place = {row["narration_id"]: i for i, row in enumerate(videos)}
picked = [place[row["narration_id"]] for row in rows(sys.argv[1] + "/EPIC_100_retrieval_test_sentence.csv")]
relevancy = Relevancy(classes(videos), classes([videos[i] for i in picked]))
rng = np.random.default_rng(0)
text, video = (rng.standard_normal((len(videos), 256)).astype(np.float32) for _ in range(2))
out = {"shape": relevancy.shape}
for name in sys.argv[2:]:
    start = time.perf_counter()
    sim = cosine(video, text[picked]) if name == "cosine" else dual_softmax(text, video, picked)
    found = score_retrieval(sim, relevancy)
    scored = [found.video_to_text.scored, found.text_to_video.scored]
    out[name] = {"seconds": time.perf_counter() - start, "scored": scored}
    for part in ("video_to_text", "text_to_video"):
        direction = getattr(found, part)
        out[name][part] = [direction.map, direction.strict_map, direction.ndcg]
out["bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps(out))
"""


@pytest.mark.parametrize("name", ["cosine", pytest.param("dual", marks=pytest.mark.slow)])
def test_random_embeddings_are_at_published_chance_on_the_real_files(name: str) -> None:
    folder = shared("epic100")
    environment = {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", CHANCE, str(folder), name],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["shape"] == [9668, 3842]
    assert found["bytes"] < 2e9
    assert found[name]["seconds"] < 90  # 9 on two quiet cores
    assert found[name]["scored"] == [9668, 3842]
    # "Rescaling Egocentric Vision": chance is 5.7 and 5.6 mAP, 10.8 and 10.9 nDCG.
    assert found[name]["video_to_text"] == pytest.approx([5.7, 0.37, 10.8], abs=0.1)
    assert found[name]["text_to_video"] == pytest.approx([5.6, 0.25, 10.9], abs=0.1)
