"""Benchmarks run from their command lines: scores, and what is wrong is named, counted and told by the exit code."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from configs.loading import ConfigError, load
from eval import all as everything
from eval import charades_ego, egomcq, shufflemcq, summarymcq
from eval.benchmark import Benchmark, main
from eval.config import BENCHMARKS, EvalConfig, load_eval
from eval.report.published import published
from eval.results import Result
from hiervl_train.checkpoint import files as checkpoint_files
from hiervl_train.checkpoint.open import OpenConfig, open_checkpoint
from hiervl_train.models import AggregatorConfig, HierVL, ModelConfig, TextConfig
from hiervl_train.models.errors import CheckpointError
from hiervl_train.models.pixels import normalise
from hiervl_train.tokenizer import Tokenizer
from shards.companions import Question, read_questions, write_companion
from shards.config import LoaderConfig
from shards.dataset import hash_json, open_dataset
from shards.loader import Loader
from tests.eval.checkpoints import READING, tiny_checkpoint, tokenizer_of
from tests.paths import REPOSITORY, shared

Run = Callable[..., tuple[int, Path]]
ABSENT = "nobody_q0_0000000000-0000001000"


@pytest.fixture(scope="module")
def checkpoint(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"), embedded)


@pytest.fixture
def run(embedded: Path, checkpoint: Path, tmp_path: Path) -> Run:
    """Run an entry as its command line would; return the exit code and where results lie."""

    def entry(
        benchmark: Benchmark | None, *words: str, shards: Path = embedded, check: Path = checkpoint
    ) -> tuple[int, Path]:
        out = tmp_path / "out"
        arguments = ["--checkpoint", str(check), "--shards", str(shards), *READING, f"out={out}", "cache=null", *words]
        return (everything.main(arguments) if benchmark is None else main(benchmark, arguments)), out

    return entry


def with_questions(path: Path, embedded: Path, change: Callable[[list[Question]], Sequence[Question]]) -> Path:
    """Write the embedded EgoMCQ with its questions changed."""
    questions = read_questions(embedded / "egomcq" / "test" / "questions.json")
    write_companion(
        path, dataclasses.replace(questions, name="mine", questions=tuple(change(list(questions.questions))))
    )
    return path


def answerable(embedded: Path) -> list[Question]:
    """Return the embedded EgoMCQ's questions all of whose clips are packed."""
    packed = set(keys_of(embedded, "egomcq"))
    found = read_questions(embedded / "egomcq" / "test" / "questions.json").questions
    return [question for question in found if packed.issuperset(question.choices)]


def keys_of(root: Path, set_name: str) -> list[str]:
    return open_dataset(root).rows(set_name, "test", ["key"])["key"].to_pylist()


def test_every_benchmark_of_a_dataset_is_scored_with_one_command(run: Run, embedded: Path) -> None:
    code, out = run(None, "max_missing_fraction=0.5")
    assert code == 0
    results = {name: Result.load(out / name) for name in BENCHMARKS}
    for name, result in results.items():
        assert result.scores and result.items, name
        assert all(0 <= score.value <= 100 and score.items <= score.of for score in result.scores), name
        assert (out / name / "index.html").is_file() and (out / name / "report.md").is_file()
        assert f'href="{name}/index.html"' in (out / "index.html").read_text()
    assert {score.name for score in results["egomcq"].scores} == {"inter accuracy", "intra accuracy"}
    assert {"mAP", "nDCG", "mAP, dual softmax", "V2T mAP", "T2V nDCG"} <= {s.name for s in results["epic_mir"].scores}
    # What the build could not pack is missing with the build's own reason, not left out in silence.
    (reason,) = {entry.reason.rpartition(": ")[2] for entry in results["egomcq"].missing}
    assert reason == "missing"
    asked = len(read_questions(embedded / "egomcq" / "test" / "questions.json").questions)
    assert len(results["egomcq"].items) + len(results["egomcq"].missing) == asked


def test_answers_are_those_of_embedding_every_option_of_every_question(
    run: Run, embedded: Path, checkpoint: Path
) -> None:
    code, out = run(egomcq.BENCHMARK, "max_missing_fraction=1.0")
    assert code == 0
    items = {item.id: item for item in Result.load(out).items}
    model, tokenizer = HierVL.from_checkpoint(checkpoint), Tokenizer.from_pretrained(checkpoint, max_length=64)
    frames = {}
    config = LoaderConfig(global_batch=1, frames=2, size=32, workers=0)
    for batch in Loader(embedded, "egomcq", "test", config, is_training=False):
        frames[batch.keys[0]] = batch.video
    questions = answerable(embedded)
    assert questions and items.keys() == {question.id for question in questions}
    for question in questions:
        with torch.no_grad():
            text_1D = model.encode_text(*tokenizer([question.text]))
            video_KD = torch.cat([model.encode_video(normalise(frames[key])) for key in question.choices])
        sim_K = torch.cosine_similarity(text_1D, video_KD).tolist()
        item = items[question.id]
        assert [option.score for option in item.options] == pytest.approx(sim_K, abs=1e-5)
        assert item.predicted == question.choices[int(np.argmax(sim_K))]
        assert item.score == 100.0 * (item.predicted == item.answer)


def test_questions_that_name_absent_clips_are_counted_and_the_others_scored(
    run: Run, embedded: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def lose_one(questions: list[Question]) -> list[Question]:
        first, second, *_ = answerable(embedded)
        return [dataclasses.replace(first, choices=(ABSENT, *first.choices[1:])), second]

    file = with_questions(tmp_path / "mine.json", embedded, lose_one)
    code, out = run(egomcq.BENCHMARK, "--questions", str(file), "report=false")
    assert code == 3
    result = Result.load(out)
    assert [ABSENT in entry.reason and "not in the shards" in entry.reason for entry in result.missing] == [True]
    assert len(result.items) == 1
    assert sum(score.items for score in result.scores) == 1
    assert f"1 of 2 items could not be scored, as {result.missing[0].item}" in capfd.readouterr().out
    assert run(egomcq.BENCHMARK, "--questions", str(file), "report=false", "max_missing_fraction=0.5")[0] == 0


def test_questions_of_which_none_can_be_answered_leave_a_result_that_says_why(
    run: Run, embedded: Path, tmp_path: Path
) -> None:
    def lose_all(questions: list[Question]) -> list[Question]:
        return [dataclasses.replace(question, choices=(ABSENT, ABSENT + "9"), answer=0) for question in questions[:3]]

    questions = with_questions(tmp_path / "mine.json", embedded, lose_all)
    code, out = run(egomcq.BENCHMARK, "--questions", str(questions))
    assert code == 3
    result = Result.load(out)
    assert (result.scores, result.items, len(result.missing)) == ([], [], 3)
    assert "and 1 more" in result.missing[0].reason
    assert (out / "index.html").is_file()


def test_a_file_without_questions_or_of_another_set_is_refused(
    run: Run, embedded: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    empty = with_questions(tmp_path / "mine.json", embedded, lambda questions: [])
    assert run(egomcq.BENCHMARK, "--questions", str(empty))[0] == 2
    assert "holds no questions" in capfd.readouterr().err
    assert run(egomcq.BENCHMARK, "--questions", str(empty), "--set", "clips", "--split", "val")[0] == 2
    assert "--set egomcq --split test" in capfd.readouterr().err


def test_labels_out_of_range_are_named_and_the_other_benchmarks_go_on(
    run: Run, embedded: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "shards"
    shutil.copytree(embedded, root)
    path = root / "charades_ego" / "test" / "labels.json"
    labels = json.loads(path.read_text())
    labels["videos"][0]["actions"] = [4711]
    path.write_text(json.dumps(labels))
    code, out = run(
        None, "--only", "charades_ego", "--only", "summarymcq", "report=false", "max_missing_fraction=1", shards=root
    )
    assert code == 1
    assert Result.load(out / "summarymcq").items
    assert not (out / "charades_ego").exists()
    said = capfd.readouterr().err
    assert "charades_ego failed" in said and "4711" in said and labels["videos"][0]["key"] in said
    assert run(charades_ego.BENCHMARK, shards=root)[0] == 2
    assert "4711" in capfd.readouterr().err


def test_a_checkpoint_of_another_size_is_named(
    run: Run, checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(checkpoint, tmp_path / "other")
    (other / "config.yaml").write_text((other / "config.yaml").read_text().replace("embed_dim: 16", "embed_dim: 32"))
    code, out = run(egomcq.BENCHMARK, check=other)
    assert code == 2 and not out.exists()
    said = capfd.readouterr().err
    assert f"{other}: 26 tensors do not fit" in said and "norm2.bias has shape (16,) instead of (32,)" in said
    assert run(None, check=other)[0] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--checkpoint", "nowhere"], "nowhere: there is no such checkpoint"),
        (["framse=4"], "did you mean frames"),
        (["sample.windows=9"], "sample.windows = 9"),
        (["tokenizer.source=/no/such/folder"], "/no/such/folder"),
        (["--shards", "nowhere"], "nowhere"),
        (["--set", "summaries", "--split", "val"], "no questions or labels"),
    ],
)
def test_a_wrong_request_is_told_and_nothing_is_written(
    run: Run, words: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    code, out = run(egomcq.BENCHMARK, *words)
    assert code == 2 and not out.exists()
    assert message in capfd.readouterr().err.replace("\n", " ")


def test_a_mean_of_windows_cannot_tell_orders_apart_and_is_at_chance(run: Run, embedded: Path, tmp_path: Path) -> None:
    average = tiny_checkpoint(tmp_path / "average", embedded, aggregator=AggregatorConfig(kind="average"))
    code, out = run(shufflemcq.BENCHMARK, "report=false", check=average)
    assert code == 0
    (score,) = Result.load(out).scores
    assert (score.value, score.tied) == (20.0, score.items)


def test_orders_are_the_same_each_time_and_another_seed_gives_others(run: Run) -> None:
    def orders(*words: str) -> list[list[str]]:
        assert run(shufflemcq.BENCHMARK, "--set", "summaries", "--split", "val", "report=false", *words)[0] == 0
        _, out = run(shufflemcq.BENCHMARK, "--set", "summaries", "--split", "val", "report=false", *words)
        return [[option.key for option in item.options] for item in Result.load(out).items]

    first = orders()
    assert all(len(set(options)) == 5 and options.count("1 2 3") == 1 for options in first)
    assert orders() == first
    assert orders("seed=4") != first


def test_without_a_benchmark_questions_are_made_of_the_validation_sets(
    run: Run, embedded: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "shards"
    root.mkdir()
    manifest = json.loads((embedded / "dataset.json").read_text())
    manifest.pop("sha256")
    manifest["sets"] = {name: manifest["sets"][name] for name in ("clips", "summaries")}
    manifest["sha256"] = hash_json(manifest)
    (root / "dataset.json").write_text(json.dumps(manifest))
    for name in ("clips", "summaries"):
        (root / name).symlink_to(embedded / name)
    code, out = run(None, "report=false", "made_questions=10", shards=root)
    assert code == 0
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == [
        "clips-mcq",
        "shufflemcq-summaries",
        "summaries-mcq",
    ]
    assert "epic_mir: not run: the dataset has no epic_mir/test" in capfd.readouterr().out
    result = Result.load(out / "clips-mcq")
    assert {item.group for item in result.items} == {"inter", "intra"}
    assert not any(score.published for score in result.scores)


def test_a_run_stands_for_its_best_checkpoint_or_its_newest(checkpoint: Path, tmp_path: Path) -> None:
    for step in (5, 10):
        folder = shutil.copytree(checkpoint, tmp_path / "run" / "checkpoints" / f"step-{step:08d}")
        seal(folder, step)
    shutil.copytree(checkpoint, tmp_path / "run" / "checkpoints" / "step-00000015")  # not sealed: not whole
    opened = open_checkpoint(tmp_path / "run")
    assert (opened.path.name, opened.run) == ("step-00000010", tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "best.json").write_text('{"folder": "step-00000005", "step": 5, "score": 1.0}')
    assert open_checkpoint(tmp_path / "run").path.name == "step-00000005"
    assert open_checkpoint(tmp_path / "run", OpenConfig(which="newest")).path.name == "step-00000010"
    assert load(EvalConfig).folder(opened, "egomcq") == tmp_path / "run" / "evaluation" / "egomcq"


def test_the_average_of_the_weights_is_taken_where_there_is_one(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    plain = open_checkpoint(folder)
    names = {name for name, _ in plain.model.named_parameters()}
    weights = {name: tensor + 1 for name, tensor in load_file(folder / "model.safetensors").items() if name in names}
    save_file(weights, folder / "ema.safetensors")
    averaged = open_checkpoint(folder)
    assert averaged.digest != plain.digest
    assert all(torch.equal(tensor, weights[name]) for name, tensor in averaged.model.named_parameters())
    assert open_checkpoint(folder, OpenConfig(average=False)).digest == plain.digest


def test_damaged_weights_are_noticed(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "step-00000005")
    seal(folder, 5)
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-3] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="the file is damaged"):
        open_checkpoint(folder)


def test_more_frames_than_slots_get_slots_of_zeros(checkpoint: Path) -> None:
    model = open_checkpoint(checkpoint, OpenConfig(frames=5)).model
    assert model.config.num_frames == 5
    assert not model.video.temporal_embed[:, 2:].any()


def test_a_tokenizer_that_the_model_was_not_trained_with_is_refused(embedded: Path, tmp_path: Path) -> None:
    small = TextConfig(vocab_size=9, max_position_embeddings=64, n_layers=1, n_heads=2, dim=16, hidden_dim=32)
    with pytest.raises(CheckpointError, match="knows 9 tokens"):
        open_checkpoint(tiny_checkpoint(tmp_path, embedded, text=small))


def test_a_released_checkpoint_is_scored_with_the_sizes_and_tokenizer_of_its_configuration(
    run: Run, embedded: Path, tmp_path: Path
) -> None:
    tokenizer_of(embedded).save(tmp_path)
    sizes = json.loads(shared("golden/config.json").read_text())
    words = [
        f"tokenizer.source={tmp_path}",
        f"model={json.dumps(sizes)}",
        "max_missing_fraction=1",
        "report=false",
        "sample.frames=4",
    ]
    golden = shared("golden/checkpoint.pth")
    code, out = run(summarymcq.BENCHMARK, *words, check=golden)
    assert code == 0
    result = Result.load(out)
    assert result.settings["model"]["embed_dim"] == 64 and result.settings["aggregation"] == "self-attention"
    words[1] = f"model={json.dumps(sizes | {'aggregator': {'kind': 'average'}})}"
    assert run(summarymcq.BENCHMARK, *words, check=golden)[0] == 0
    assert Result.load(out).settings["aggregation"] == "mean of the windows"


@pytest.mark.parametrize("name", ["hiervl_sa", "hiervl_avg", "egovlp"])
def test_a_released_checkpoints_configuration_says_what_its_published_figures_need(name: str) -> None:
    file = REPOSITORY / "configs" / "eval" / f"{name}.yaml"
    epic, ego = load_eval("epic_mir", file, []), load_eval("egomcq", file, [])
    assert (epic.frames, epic.compat.channel_order, epic.compat.dual_softmax) == (16, "bgr", True)
    assert (ego.frames, ego.compat.channel_order, ego.windows) == (4, "rgb", 16)
    assert load_eval("charades_ego", file, []).frames == 16
    assert load_eval("epic_mir", file, ["compat.channel_order=rgb"]).compat.channel_order == "rgb"
    sizes = ego.model or ModelConfig()
    assert sizes.aggregator is not None
    assert (sizes.aggregator.kind == "average") == (name == "hiervl_avg")


def test_a_section_for_no_benchmark_or_with_an_unknown_key_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "eval.yaml"
    file.write_text("benchmarks: {epic_mirr: {frames: 16}}")
    with pytest.raises(ConfigError, match="epic_mirr"):
        load_eval("egomcq", file, [])
    file.write_text("benchmarks: {epic_mir: {framse: 16}}")
    with pytest.raises(ConfigError, match="did you mean frames"):
        load_eval("epic_mir", file, [])


def test_published_figures_stand_beside_the_real_benchmark_only() -> None:
    assert published("egomcq", "inter accuracy", of=19_000)["HierVL-SA"] == 90.5
    assert published("egomcq", "inter accuracy", of=19) == {}
    assert published("mine", "inter accuracy", of=19_000) == {}


def test_an_interrupted_evaluation_says_so(embedded: Path, checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-u", "eval/egomcq.py", "--checkpoint", str(checkpoint), "--shards", str(embedded)]
    options = [*READING, f"out={tmp_path / 'out'}", "cache=null", "resamples=2000000"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, *options], cwd=REPOSITORY, stdout=subprocess.PIPE, env=environment, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("egomcq:")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    process.stdout.close()


def seal(folder: Path, step: int) -> None:
    """Write the file that says that a checkpoint is whole."""
    checkpoint_files.seal(
        folder, step=step, world=1, save=f"made up {step}", names=["model.safetensors", "config.yaml"]
    )
