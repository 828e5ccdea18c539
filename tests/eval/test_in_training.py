"""A run evaluates itself on the same questions each time, scores them as the benchmarks do, and trains unchanged."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from pathlib import Path

import pytest

from configs.loading import load
from eval import charades_ego, egomcq, epic_mir, shufflemcq, summarymcq
from eval.command import main
from eval.embed import EmbedSettings
from eval.in_training import PeriodicMcq, periodic_benchmark, periodic_mcq
from eval.results import Result
from hiervl_train.checkpoint.open import open_checkpoint
from hiervl_train.config import EvaluationConfig, PretrainConfig
from hiervl_train.data import DataError
from hiervl_train.distributed import DistributedContext, distributed_context
from hiervl_train.launch import launch
from hiervl_train.monitor.metrics import read_metrics
from hiervl_train.tasks.config import FinetuneConfig
from hiervl_train.tasks.pretraining import pretraining_task
from shards.companions import read_questions, write_companion
from shards.dataset import hash_json, open_dataset
from shards.index import finish_split, write_dataset
from shards.stats import ShardError
from tests.eval.ranks import run_ranks
from tests.eval.small import save_small_checkpoint
from tests.hiervl_train.runs import DROPOUT, TINY, ended, finished, start
from tests.shards.coded import coded_clip, coded_summary
from tests.shards.samples import TOOLCHAIN, write_shard

SETTINGS = EmbedSettings(frames=2, windows=3)
CONFIG = EvaluationConfig(every_steps=1, questions=1000)


@pytest.fixture(scope="module")
def without_benchmarks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset without benchmarks: 24 clips and 4 summaries of 4 videos to validate on."""
    root = tmp_path_factory.mktemp("without_benchmarks") / "shards"
    write_shard(root, [coded_clip(n, video=f"video-{n // 6}") for n in range(24)], split="val")
    summaries = [coded_summary(n, seconds=8, narrations=1, video=f"video-{n}") for n in range(4)]
    write_shard(root, summaries, set_name="summaries", split="val")
    for set_name in ("clips", "summaries"):
        finish_split(root, set_name, "val")
    about = {"code_revision": "0" * 40, "annotations": {}, "licence_notice": "", "counts": {}}
    write_dataset(root, config={"chunk": {"fps": 30}}, toolchain=TOOLCHAIN, provenance=about)
    return root


@pytest.mark.parametrize("seed", range(4))  # few questions: that one model answers as many is little evidence
def test_scores_are_those_of_the_benchmarks_entries(seed: int, embedded: Path, tmp_path: Path) -> None:
    checkpoint = save_small_checkpoint(tmp_path / "checkpoint", embedded, seed=seed)
    opened = open_checkpoint(checkpoint)
    inside = PeriodicMcq(embedded, CONFIG, SETTINGS)(opened.model, opened.tokenizer, DistributedContext())
    packed = set(open_dataset(embedded).rows("summarymcq", "test", ["key"])["key"].to_pylist())
    every = read_questions(embedded / "summarymcq" / "test" / "questions.json")
    whole = [question for question in every.questions if packed.issuperset(question.choices)]
    write_companion(tmp_path / "whole.json", dataclasses.replace(every, questions=tuple(whole), rejected=()))
    outside = {}
    for entry in (egomcq, summarymcq, shufflemcq):
        out = tmp_path / entry.__name__
        sample = ["sample.frames=2", "sample.windows=3", "data.workers=0", "resamples=10", "report=false", "cache=null"]
        argv = [f"--checkpoint={checkpoint}", f"--shards={embedded}", *sample]
        argv += [f"output={out}", "max_missing_fraction=1"]
        argv += [f"--questions={tmp_path}/whole.json"] if entry is shufflemcq else []
        assert main(entry.BENCHMARK, argv) == 0
        outside |= {f"{out.name} {score.name}": score.value for score in Result.load(out).scores}
    assert inside["mcq/inter"] == pytest.approx(outside["eval.egomcq inter accuracy"])
    assert inside["mcq/intra"] == pytest.approx(outside["eval.egomcq intra accuracy"])
    assert inside["summary_mcq"] == pytest.approx(outside["eval.summarymcq summary accuracy"])
    assert inside["shuffle_mcq"] == pytest.approx(outside["eval.shufflemcq accuracy"])
    names = {"mcq/inter", "mcq/intra", "summary_mcq", "shuffle_mcq"}
    assert set(inside) == names | {f"chance/{name}" for name in names}
    assert inside["chance/mcq/inter"] == inside["chance/shuffle_mcq"] == 20


def test_without_benchmarks_questions_are_generated_from_the_validation_splits(
    small_checkpoint: Path, without_benchmarks: Path
) -> None:
    opened = open_checkpoint(small_checkpoint)
    evaluate = PeriodicMcq(without_benchmarks, CONFIG, SETTINGS)
    first = evaluate(opened.model, opened.tokenizer, DistributedContext())
    names = {"mcq/inter", "mcq/intra", "summary_mcq", "shuffle_mcq"}
    assert set(first) == names | {f"chance/{name}" for name in names}
    assert all(0 <= score <= 100 for score in first.values())
    assert evaluate(opened.model, opened.tokenizer, DistributedContext()) == first
    assert (
        PeriodicMcq(without_benchmarks, CONFIG, SETTINGS)(opened.model, opened.tokenizer, DistributedContext()) == first
    )


def test_the_number_of_questions_is_bounded(small_checkpoint: Path, embedded: Path, without_benchmarks: Path) -> None:
    opened = open_checkpoint(small_checkpoint)
    few = EvaluationConfig(every_steps=1, questions=1)
    for root in (embedded, without_benchmarks):
        scores = PeriodicMcq(root, few, SETTINGS)(opened.model, opened.tokenizer, DistributedContext())
        assert scores["mcq/inter"] in (0, 100, 50)
        assert scores["mcq/intra"] in (0, 100, 50)


def test_a_dataset_without_validation_splits_is_refused(tmp_path: Path) -> None:
    write_shard(tmp_path, [coded_clip(0)])
    finish_split(tmp_path, "clips", "train")
    about = {"code_revision": "0" * 40, "annotations": {}, "licence_notice": "", "counts": {}}
    write_dataset(tmp_path, config={"chunk": {"fps": 30}}, toolchain=TOOLCHAIN, provenance=about)
    with pytest.raises(DataError, match="none of egomcq/test, clips/val, summarymcq/test, summaries/val"):
        PeriodicMcq(tmp_path, CONFIG, SETTINGS)


def finetune_config(task: str, root: Path, *overrides: str) -> FinetuneConfig:
    values = [f"task.name={task}", f"data.root={root}", "data.workers=0", "sample.frames=2"]
    return load(FinetuneConfig, None, [*values, "speed={bf16: false, compile: false}", *overrides])


@pytest.mark.parametrize("task", ["charades_ego", "epic_mir"])
def test_a_fine_tuning_run_logs_the_scores_of_its_benchmark(
    task: str, small_checkpoint: Path, embedded: Path, tmp_path: Path
) -> None:
    evaluate = periodic_benchmark(finetune_config(task, embedded, "evaluation.at_end=true"))
    assert evaluate is not None
    opened = open_checkpoint(small_checkpoint)
    inside = evaluate(opened.model, opened.tokenizer, DistributedContext())
    benchmark = {"charades_ego": charades_ego, "epic_mir": epic_mir}[task].BENCHMARK
    argv = [
        f"--checkpoint={small_checkpoint}",
        f"--shards={embedded}",
        f"output={tmp_path}",
        "cache=null",
        "report=false",
    ]
    assert main(benchmark, [*argv, "sample.frames=2", "data.workers=0", "resamples=10"]) == 0
    outside = {score.name: score for score in Result.load(tmp_path).scores}
    names = {"charades_ego": ["mAP"], "epic_mir": ["mAP", "nDCG"]}[task]
    assert {name for name in inside if not name.startswith("chance/")} == {f"{task}/{name}" for name in names}
    for name in names:
        assert inside[f"{task}/{name}"] == pytest.approx(outside[name].value)
        assert inside[f"chance/{task}/{name}"] == pytest.approx(outside[name].chance)


def test_a_fine_tuning_run_without_a_benchmark_is_not_evaluated(embedded: Path, without_benchmarks: Path) -> None:
    assert periodic_benchmark(finetune_config("charades_ego", embedded)) is None
    assert periodic_benchmark(finetune_config("howto100m", embedded, "evaluation.at_end=true")) is None
    with pytest.raises(ShardError, match="charades_ego/test"):
        periodic_benchmark(finetune_config("charades_ego", without_benchmarks, "evaluation.at_end=true"))


@pytest.mark.medium
def test_evaluation_does_not_change_the_losses(embedded: Path, tmp_path: Path) -> None:
    def losses(folder: Path, *overrides: str) -> list[float]:
        values = [*TINY, DROPOUT, f"data.root={embedded}", f"run.folder={folder}", "run.max_steps=7", *overrides]
        values += ["speed={bf16: false, compile: false}", "data.workers=0", "data.summary_workers=0"]
        config = load(PretrainConfig, None, [*values, "init={video: null, text: null}"])
        task = functools.partial(pretraining_task, evaluate=periodic_mcq(config))
        assert launch(config, task) == 0
        rows = read_metrics(folder)
        return [value for row in rows for name, value in row.items() if name.startswith("loss/")]

    plain = losses(tmp_path / "plain")
    evaluated = losses(tmp_path / "evaluated", "evaluation={every_steps: 3, at_end: true, questions: 20}")
    assert len(plain) == 7 and evaluated == plain
    found = [row for row in read_metrics(tmp_path / "evaluated") if "eval/mcq/inter" in row]
    assert [row["step"] for row in found] == [3, 6, 7]
    assert {"eval/mcq/intra", "eval/summary_mcq", "eval/shuffle_mcq", "eval/chance/mcq/intra"} <= set(found[0])
    kept = json.loads((tmp_path / "evaluated" / "evaluation" / "step-00000003.json").read_bytes())
    assert (
        kept["scores"].keys() == kept["chance"].keys()
        and "chance 20.0" in (tmp_path / "evaluated" / "log.txt").read_text()
    )
    best = json.loads((tmp_path / "evaluated" / "checkpoints" / "best.json").read_bytes())
    assert best["step"] in (3, 6, 7)
    assert open_checkpoint(tmp_path / "evaluated").path.name == best["folder"]


def _evaluate(argv: list[str]) -> int:
    root, checkpoint, prefix = argv
    with distributed_context() as ranks:
        opened = open_checkpoint(checkpoint)
        config = EvaluationConfig(every_steps=1, questions=20)
        scores = PeriodicMcq(root, config, SETTINGS)(opened.model, opened.tokenizer, ranks)
        Path(f"{prefix}-{ranks.world}-{ranks.rank}.json").write_text(json.dumps(scores))
    return 0


@pytest.mark.medium
def test_every_rank_gets_the_same_scores(small_checkpoint: Path, embedded: Path, tmp_path: Path) -> None:
    for world in (1, 2):
        argv = [str(embedded), str(small_checkpoint), str(tmp_path / "scores")]
        assert run_ranks(_evaluate, argv, tmp_path / f"output-{world}", world) == [0] * world
    single, *both = (json.loads((tmp_path / f"scores-{place}.json").read_bytes()) for place in ("1-0", "2-0", "2-1"))
    names = {"mcq/inter", "mcq/intra", "summary_mcq", "shuffle_mcq"}
    assert set(single) == names | {f"chance/{name}" for name in names}
    assert both == [single, single]


def test_a_dataset_without_anything_to_evaluate_on_is_answered_with_a_remedy_that_works(
    own_shards: Path, tmp_path: Path
) -> None:
    manifest = json.loads((own_shards / "dataset.json").read_bytes())
    manifest["sets"] = {name: {"train": manifest["sets"][name]["train"]} for name in ("clips", "summaries")}
    del manifest["sha256"]
    (own_shards / "dataset.json").write_text(json.dumps({**manifest, "sha256": hash_json(manifest)}))
    asked = ("run.max_steps=1", "evaluation={every_steps: 5, at_end: true, questions: 5}")
    with ended(start(own_shards, tmp_path / "refused", *asked)) as run:
        assert run.wait() == [2], run.output()
    said = " ".join(run.output().split())
    assert "has none of" in said and "Traceback" not in said
    remedy = re.findall(r"[a-z_.]+=[a-z]+", said.partition("to evaluate on; set ")[2])
    assert remedy
    assert len(finished(own_shards, tmp_path / "run", *asked, *remedy)) == 1
