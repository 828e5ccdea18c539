"""Questions are answered as by embedding every option; questions that cannot be scored are counted with a reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from eval import egomcq
from hiervl_train.models import HierVL
from hiervl_train.models.pixels import normalise
from hiervl_train.tokenizer import Tokenizer
from shards.companions import Question, read_questions, write_companion
from shards.config import LoaderConfig
from shards.dataset import open_dataset
from shards.loader import Loader
from tests.eval.conftest import Evaluation, Run

ABSENT = "nobody_q0_0000000000-0000001000"


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


def test_answers_are_those_of_embedding_every_option_of_every_question(
    evaluated: Evaluation, embedded: Path, checkpoint: Path
) -> None:
    items = {item.id: item for item in evaluated.result("egomcq").items}
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


def test_questions_about_absent_clips_are_counted_and_the_others_scored(
    run: Run, embedded: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def lose_one(questions: list[Question]) -> list[Question]:
        first, second, *_ = answerable(embedded)
        return [dataclasses.replace(first, choices=(ABSENT, *first.choices[1:])), second]

    file = with_questions(tmp_path / "mine.json", embedded, lose_one)
    done = run(egomcq.BENCHMARK, "--questions", str(file))
    assert done.code == 3
    result = done.result()
    assert [ABSENT in entry.reason and "not in the shards" in entry.reason for entry in result.missing] == [True]
    assert len(result.items) == 1
    assert sum(score.items for score in result.scores) == 1
    assert f"1 of 2 items could not be scored, such as {result.missing[0].item}" in capfd.readouterr().out
    assert run(egomcq.BENCHMARK, "--questions", str(file), "max_missing_fraction=0.5").code == 0


def test_a_result_without_a_scored_question_has_reasons(run: Run, embedded: Path, tmp_path: Path) -> None:
    def lose_all(questions: list[Question]) -> list[Question]:
        return [dataclasses.replace(question, choices=(ABSENT, ABSENT + "9"), answer=0) for question in questions[:3]]

    questions = with_questions(tmp_path / "mine.json", embedded, lose_all)
    done = run(egomcq.BENCHMARK, "--questions", str(questions), "report=true")
    assert done.code == 3
    result = done.result()
    assert (result.scores, result.items, len(result.missing)) == ([], [], 3)
    assert "and 1 more" in result.missing[0].reason
    assert (done.out / "index.html").is_file()


def test_a_file_without_questions_or_about_another_set_is_refused(
    run: Run, embedded: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    empty = with_questions(tmp_path / "mine.json", embedded, lambda questions: [])
    assert run(egomcq.BENCHMARK, "--questions", str(empty)).code == 2
    assert "holds no questions" in capfd.readouterr().err
    assert run(egomcq.BENCHMARK, "--questions", str(empty), "--set", "clips", "--split", "val").code == 2
    assert "--set egomcq --split test" in capfd.readouterr().err
