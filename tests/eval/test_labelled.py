"""Retrieval and classification run from shards to a result, and give what embedding everything by hand would give."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from eval.probe import fit_probe

from eval import charades_ego, epic_mir, howto100m
from eval.benchmark import main
from eval.embed import EmbedSettings, aggregate, embed_split
from eval.results import Result
from hiervl_train.checkpoint.open import open_checkpoint
from hiervl_train.models.pixels import normalise
from shards.companions import CharadesLabels, EpicLabels, HowToLabels, read_companion
from shards.config import LoaderConfig
from shards.dataset import open_dataset
from shards.loader import Loader
from tests.eval.small import save_small_checkpoint
from tests.hiervl_train.reference import dual_softmax

ENTRIES = {"epic_mir": epic_mir, "charades_ego": charades_ego, "howto100m": howto100m}
SAMPLE = ("sample.frames=2", "sample.windows=3", "data.workers=0", "resamples=50", "report=false")


@pytest.fixture(scope="module")
def checkpoint(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_checkpoint(tmp_path_factory.mktemp("checkpoint"), embedded)


@pytest.fixture
def own(embedded: Path, tmp_path: Path) -> Path:
    """A copy of the dataset that a test may damage."""
    return Path(shutil.copytree(embedded, tmp_path / "shards"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def evaluated(name: str, checkpoint: Path, root: Path | str, out: Path, *overrides: str) -> tuple[int, Result | None]:
    """Run an entry as from the command line; return its exit code and what it wrote."""
    argv = [f"--checkpoint={checkpoint}", f"--shards={root}", f"out={out}", "cache=null", *SAMPLE, *overrides]
    code = main(ENTRIES[name].BENCHMARK, argv)
    return code, Result.load(out) if (out / "scores.json").exists() else None


def scored(name: str, checkpoint: Path, root: Path | str, out: Path, *overrides: str) -> Result:
    code, result = evaluated(name, checkpoint, root, out, *overrides)
    assert code == 0 and result is not None
    return result


def values(result: Result) -> dict[str, float]:
    return {score.name: score.value for score in result.scores}


def by_hand(checkpoint: Path, root: Path, set_name: str, split: str, keys: Sequence[str]) -> np.ndarray:
    """Return embeddings of clips, one at a time."""
    model = open_checkpoint(checkpoint).model
    found = {}
    config = LoaderConfig(global_batch=1, workers=0, frames=2, size=16)
    with Loader(root, set_name, split, config, is_training=False) as loader, torch.no_grad():
        for batch in loader:
            found[batch.keys[0]] = model.encode_video(normalise(batch.video))[0].numpy()
    return np.stack([found[key] for key in keys])


def texts_by_hand(checkpoint: Path, texts: Sequence[str]) -> np.ndarray:
    opened = open_checkpoint(checkpoint)
    with torch.no_grad():
        return np.concatenate([opened.model.encode_text(*opened.tokenizer([text])).numpy() for text in texts])


def unit(x_ND: np.ndarray) -> np.ndarray:
    return x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)


def relevancies(rows: Sequence, columns: Sequence) -> np.ndarray:
    """Return the relevancy matrix, pair by pair."""
    return np.array(
        [
            [
                (
                    (a.verb_class == b.verb_class)
                    + len({*a.noun_classes} & {*b.noun_classes}) / len({*a.noun_classes} | {*b.noun_classes})
                )
                / 2
                for b in columns
            ]
            for a in rows
        ]
    )


def ndcg(scores_QM: np.ndarray, relevancy_QM: np.ndarray) -> float:
    """Return the nDCG of rankings without ties between unlike items, in percent."""
    found = []
    for scores, gains in zip(scores_QM, relevancy_QM, strict=True):
        order, cut = np.argsort(-scores, kind="stable"), (gains > 0).sum()
        discount = np.log2(np.arange(2, cut + 2))
        found.append((gains[order][:cut] / discount).sum() / (np.sort(gains)[::-1][:cut] / discount).sum())
    return 100 * float(np.mean(found))


def test_retrieval_is_that_of_every_clip_and_sentence_embedded_alone(
    checkpoint: Path, embedded: Path, tmp_path: Path
) -> None:
    result = scored("epic_mir", checkpoint, embedded, tmp_path / "out")
    labels = read_companion(embedded, "epic_mir", "test", EpicLabels)
    video = by_hand(checkpoint, embedded, "epic_mir", "test", [v.key for v in labels.videos])
    text = texts_by_hand(checkpoint, [s.text for s in labels.sentences])
    sim, relevancy = unit(video) @ unit(text).T, relevancies(labels.videos, labels.sentences)
    assert values(result)["T2V nDCG"] == pytest.approx(ndcg(sim.T, relevancy.T), abs=1e-3)
    narration_ids = [v.narration_id for v in labels.videos]
    rows = [narration_ids.index(s.narration_id) for s in labels.sentences]
    everything = torch.from_numpy(texts_by_hand(checkpoint, [v.text for v in labels.videos]))
    dual = dual_softmax(everything, torch.from_numpy(video))[rows].numpy()
    assert values(result)["T2V nDCG, dual softmax"] == pytest.approx(ndcg(dual, relevancy.T), abs=1e-3)
    means = [values(result)[f"{way} nDCG"] for way in ("V2T", "T2V")]
    assert values(result)["nDCG"] == pytest.approx(np.mean(means))
    assert {score.of for score in result.scores if score.name.startswith("V2T")} == {len(labels.videos)}
    assert len(result.items) == len(labels.videos) + len(labels.sentences) and not result.missing


def test_items_are_the_queries_whose_mean_is_the_score(checkpoint: Path, embedded: Path, tmp_path: Path) -> None:
    for switch, suffix in (("false", ""), ("true", ", dual softmax")):
        result = scored("epic_mir", checkpoint, embedded, tmp_path / suffix, f"compat.dual_softmax={switch}")
        for way in ("V2T", "T2V"):
            mean = np.mean([item.score for item in result.items if item.group == way])
            assert values(result)[f"{way} mAP{suffix}"] == pytest.approx(mean)
        for item in result.items:
            assert {item.answer, item.predicted} <= {option.key for option in item.options}
            assert max(item.options, key=lambda option: option.score).score == pytest.approx(
                next(option.score for option in item.options if option.key == item.predicted)
            )


def test_the_released_input_is_another_one(checkpoint: Path, embedded: Path, tmp_path: Path) -> None:
    rgb, bgr = (
        scored("epic_mir", checkpoint, embedded, tmp_path / order, f"compat.channel_order={order}")
        for order in ("rgb", "bgr")
    )
    assert [i.options[0].score for i in rgb.items] != [i.options[0].score for i in bgr.items]
    assert bgr.settings["channel_order"] == "bgr"


def test_a_broken_clip_is_named_and_the_others_are_scored(checkpoint: Path, own: Path, tmp_path: Path) -> None:
    labels = read_companion(own, "epic_mir", "test", EpicLabels)
    shard = open_dataset(own).split("epic_mir", "test").shards[0]
    row = shard.rows(["key", "mp4_offset", "mp4_size"]).to_pylist()[4]
    with shard.path.open("r+b") as file:
        file.seek(row["mp4_offset"])
        file.write(bytes(row["mp4_size"]))
    (broken,) = [video for video in labels.videos if video.key == row["key"]]
    code, result = evaluated("epic_mir", checkpoint, own, tmp_path / "out")
    assert code == 3 and result is not None, "more than one in a hundred is missing"
    assert [missing.item for missing in result.missing] == [broken.narration_id]
    assert broken.key in result.missing[0].reason
    counts = {score.name: (score.items, score.of) for score in result.scores}
    assert counts["V2T nDCG"] == (len(labels.videos) - 1, len(labels.videos))
    whole = scored("epic_mir", checkpoint, own, tmp_path / "lenient", "max_missing_fraction=0.1")
    assert values(whole) == values(result)


def test_labels_out_of_range_are_refused_by_name(
    checkpoint: Path, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = own / "charades_ego" / "test" / "labels.json"
    tree = json.loads(path.read_bytes())
    tree["videos"][0]["actions"] = [157]
    path.write_text(json.dumps(tree))
    assert evaluated("charades_ego", checkpoint, own, tmp_path / "out") == (2, None)
    said = " ".join(capsys.readouterr().err.split())
    assert tree["videos"][0]["key"] in said and "actions = [157]; there are classes 0 … 13" in said


def test_the_map_of_charades_is_the_mean_over_classes_of_videos_ranked_by_class_sentence(
    checkpoint: Path, embedded: Path, tmp_path: Path
) -> None:
    result = scored("charades_ego", checkpoint, embedded, tmp_path / "out")
    labels = read_companion(embedded, "charades_ego", "test", CharadesLabels)
    video = by_hand(checkpoint, embedded, "charades_ego", "test", [v.key for v in labels.videos])
    sim = unit(video) @ unit(texts_by_hand(checkpoint, labels.classes)).T
    found = {}
    for number in range(len(labels.classes)):
        shown = np.array([number in v.actions for v in labels.videos])
        if shown.any():
            hits = shown[np.argsort(-sim[:, number])]
            found[f"c{number:03d}"] = 100 * (np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean()
    assert {item.id: item.score for item in result.items} == pytest.approx(found)
    assert len(set(found.values())) > 1, "some classes are ranked better than others"
    assert values(result) == {"mAP": pytest.approx(np.mean(list(found.values())))}


def test_long_videos_are_classified_by_name_and_by_a_probe_of_the_training_split(
    checkpoint: Path, embedded: Path, tmp_path: Path
) -> None:
    result = scored("howto100m", checkpoint, embedded, tmp_path / "out")
    labels = read_companion(embedded, "howto100m", "val", HowToLabels)
    learnt = read_companion(embedded, "howto100m", "train", HowToLabels)
    opened = open_checkpoint(checkpoint)
    settings = EmbedSettings(frames=2, windows=3)
    val, train = (embed_split(opened.model, embedded, "howto100m", split, settings) for split in ("val", "train"))
    assert val is not None and train is not None
    truth = np.array([v.label for v in labels.videos])
    windows = val.vectors[[val.index[v.key] for v in labels.videos]]
    whole = aggregate(opened.model, windows, settings.speed, torch.device("cpu"))
    guesses = (unit(whole) @ unit(texts_by_hand(checkpoint, labels.classes)).T).argmax(axis=1)
    assert values(result)["zero-shot top-1"] == pytest.approx(100 * (guesses == truth).mean())
    pooled = train.vectors[[train.index[v.key] for v in learnt.videos]].mean(axis=1)
    probe = fit_probe(pooled, [v.label for v in learnt.videos], len(labels.classes), penalty=1e-3, steps=200)
    guesses = probe.scores(windows.mean(axis=1)).argmax(axis=1)
    assert values(result)["linear probe top-1"] == pytest.approx(100 * (guesses == truth).mean())
    assert result.confusion is not None and np.sum(result.confusion.counts) == len(truth)


def test_a_probe_is_at_its_optimum_whatever_the_order_of_the_videos() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    x = rng.normal(size=(60, 5)) + 3 * np.eye(3, 5)[labels]
    probe = fit_probe(x, labels, 3, penalty=1e-2, steps=300)
    assert (probe.scores(x).argmax(axis=1) == labels).mean() > 0.95
    weight = torch.tensor(probe.weight_CD, requires_grad=True)
    inputs = torch.from_numpy((x - probe.mean_D) * probe.scale_D)
    logits = inputs @ weight.T + torch.from_numpy(probe.bias_C)
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)) + 5e-3 * weight.square().sum()
    loss.backward()
    assert weight.grad is not None and weight.grad.abs().max() < 1e-4
    order = rng.permutation(60)
    shuffled = fit_probe(x[order], labels[order], 3, penalty=1e-2, steps=300)
    np.testing.assert_allclose(shuffled.weight_CD, probe.weight_CD, atol=1e-3)
    with pytest.raises(ValueError, match="video 2: class 3 of 3"):
        fit_probe(x[:3], [0, 1, 3], 3, penalty=1e-2, steps=5)
