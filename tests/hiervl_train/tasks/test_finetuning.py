"""Fine-tuning: whole runs of every task, what they change, what they start from, and errors."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import cosine_similarity

from eval import charades_ego, epic_mir
from eval.command import main as evaluate
from eval.results import Result
from hiervl_train import finetune
from hiervl_train.checkpoint.files import EMA
from hiervl_train.checkpoint.open import find_checkpoint, open_checkpoint
from hiervl_train.distributed import DistributedContext
from hiervl_train.models import HierVL
from hiervl_train.models.pixels import normalise
from hiervl_train.models.storage import WEIGHTS, read_safetensors, save
from hiervl_train.monitor.metrics import read_metrics
from hiervl_train.task import Task
from hiervl_train.tasks.epic_mir import RelevantSentences
from hiervl_train.tasks.finetuning import build_model, finetuning_task, open_start
from hiervl_train.tokenizer import Tokenizer
from shards.companions import (
    EpicLabels,
    HowToLabels,
    read_companion,
    write_companion,
)
from shards.config import LoaderConfig
from shards.dataset import hash_json, open_dataset
from shards.loader import Batch, Loader
from tests.eval.small import save_small_checkpoint
from tests.hiervl_train.runs import ended, finished, losses, start
from tests.hiervl_train.tasks.configs import FOLDER, TASKS, config_of
from tests.hiervl_train.tiny import GOLDEN, needs_golden
from tests.shards.manifests import sign_anew

pytestmark = pytest.mark.medium

STEPS = 8
BATCH = {"charades_ego": 8, "epic_mir": 8, "howto100m_probe": 4, "howto100m_full": 4}
# What makes a published configuration small enough for a test.
TINY = (
    "sample={frames: 2, windows: 3}",
    "speed={bf16: false, compile: false}",
    "data={workers: 1, summary_workers: 1}",
    "metrics={every_steps: 1, tensorboard: false, peak_tflops: 1.0}",
    "save={every_steps: 3, every_minutes: null, keep_last: 2}",
    "evaluation={every_steps: null, at_end: false}",
    f"run.max_steps={STEPS}",
)


def settings(task: str, checkpoint: Path) -> list[str]:
    """Return the command line of a task at the size of tests."""
    tiny = [*TINY, f"schedule={{epochs: 1000, batch: {BATCH[task]}, micro_batch: null}}", "optim.lr=0.0003"]
    classes = ["task.classes=null"] if task.startswith("howto100m") else []
    return [f"--config={FOLDER / task}.yaml", f"--checkpoint={checkpoint}", *tiny, *classes]


def tuned(task: str, checkpoint: Path, root: Path, folder: Path, *overrides: str, ranks: int = 1) -> list[float]:
    """Run a task to its end; return its losses."""
    return finished(root, folder, *overrides, ranks=ranks, entry="finetune", settings=settings(task, checkpoint))


@pytest.fixture(scope="module")
def checkpoint(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lively_checkpoint(tmp_path_factory.mktemp("checkpoint"), embedded)


def lively_checkpoint(folder: Path, root: Path) -> Path:
    """Write a small model, with four slots for frames, whose embeddings differ from clip to clip and text to text.

    Those of usual random weights hardly do in a model as narrow as this: then every loss is that of chance.
    """
    model = HierVL.from_checkpoint(save_small_checkpoint(folder, root))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "timeattn" not in name and "embed" not in name:
            parameter.data *= 8
    return save(model, folder)


@pytest.fixture(scope="module", params=TASKS)
def run(
    request: pytest.FixtureRequest, checkpoint: Path, embedded: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished run of one rank, named after its task, that evaluated itself at its end."""
    folder = tmp_path_factory.mktemp("runs") / str(request.param)
    tuned(request.param, checkpoint, embedded, folder, "evaluation.at_end=true")
    return folder


def last(folder: Path) -> Path:
    return folder / "checkpoints" / f"step-{STEPS:08d}"


def weights(path: Path) -> dict[str, torch.Tensor]:
    return read_safetensors(path / WEIGHTS)


def test_two_ranks_and_micro_batches_give_the_losses_of_one_rank(
    run: Path, checkpoint: Path, embedded: Path, tmp_path: Path
) -> None:
    """With half the batch each, encoded in unequal parts; and evaluating itself has not changed the one rank's."""
    micro_batch = 3 if BATCH[run.name] == 8 else 1
    two = tuned(run.name, checkpoint, embedded, tmp_path / "two", f"schedule.micro_batch={micro_batch}", ranks=2)
    assert len(two) == STEPS
    np.testing.assert_allclose(two, losses(run), rtol=2e-3)


def test_only_trained_parts_change(run: Path, checkpoint: Path) -> None:
    before, after = weights(checkpoint), weights(last(run))
    moved = {name.split(".")[0] for name, value in before.items() if not torch.equal(value, after[name])}
    towers = {"video", "video_projection"}
    expected = {"howto100m_probe": set(), "howto100m_full": towers}
    assert moved == expected.get(run.name, towers | {"text", "text_projection"})
    assert (after.keys() - before.keys() == {"head.weight", "head.bias"}) == run.name.startswith("howto100m")


@contextmanager
def batch_of(task: str, checkpoint: Path, root: Path, *overrides: str) -> Iterator[tuple[Task, str, Batch]]:
    """Give a task in this process, the name of its step, and a batch of another number than its epoch's."""
    own = (f"init_from={checkpoint}", f"data.root={root}", "data.workers=0", "data.summary_workers=0")
    made = (f"schedule.batch={BATCH[task]}", "sample={frames: 2, windows: 3}", *TINY[1:2])
    classes = ["task.classes=null"] if task.startswith("howto100m") else []
    made_task = finetuning_task(config_of(task, *own, *made, *classes, *overrides), DistributedContext())
    name = made_task.step_type(0)
    try:
        batch = next(b for b in iter(lambda: made_task.loaders.next(name), None) if b.epoch and b.number != b.epoch)
        yield made_task, name, batch
    finally:
        made_task.loaders.close()


@pytest.mark.parametrize("task", TASKS)
def test_a_single_batch_can_be_overfitted(task: str, checkpoint: Path, embedded: Path) -> None:
    """Towers alone, or a head alone, get far beyond chance on one batch that is shown again and again."""
    with batch_of(task, checkpoint, embedded) as (made, name, batch):
        optimizer = torch.optim.Adam([p for p in made.model.parameters() if p.requires_grad], lr=0.003)
        found = []
        for _ in range(60):
            optimizer.zero_grad()
            found.append(float(made.steps[name](batch).loss))
            optimizer.step()
    assert found[-1] < found[0] / 3


@pytest.mark.parametrize("task", ["charades_ego", "epic_mir"])
def test_the_loss_of_a_step_equals_its_formula(task: str, checkpoint: Path, embedded: Path) -> None:
    with batch_of(task, checkpoint, embedded, "run.seed=3") as (made, name, batch):
        with torch.no_grad():
            video = made.model.encode_video(normalise(batch.video))
            sentences = RelevantSentences(read_companion(embedded, "epic_mir", "train", EpicLabels), above=0.1, seed=3)
            chosen = [sentences.choose(key, batch.epoch) for key in batch.keys] if task == "epic_mir" else []
            texts = [one.text for one in chosen] or batch.texts
            sim = cosine_similarity(made.model.encode_text(*made.tokenizer(texts))[:, None], video[None], dim=2)
        loss = float(made.steps[name](batch).loss)
    n = len(sim)
    if task == "charades_ego":
        assert len(set(batch.texts)) < n  # segments of one text are each other's negatives all the same
        scaled = sim / 0.05
        terms = [part.logsumexp(0) - scaled[i, i] for i in range(n) for part in (scaled[i], scaled[:, i])]
        assert loss == pytest.approx(float(sum(terms)) / n, rel=1e-4)
        return
    assert len({one.relevancy for one in chosen}) > 1
    hinges = [
        max(0.0, chosen[i].relevancy * 0.2 - float(sim[i, i]) + float(other))
        for i in range(n)
        for j in range(n)
        if i != j
        for other in (sim[i, j], sim[j, i])
    ]
    assert loss == pytest.approx(sum(hinges) / len(hinges), rel=1e-4)


def test_a_checkpoint_loads_as_a_model_with_a_tokenizer(run: Path) -> None:
    model = HierVL.from_checkpoint(last(run))
    tokenizer = Tokenizer.from_pretrained(last(run), max_length=model.text.max_length)
    assert model.encode_text(*tokenizer(["opens the drawer"])).shape == (1, 8)
    assert open_checkpoint(run).sample == {"frames": 2, "windows": 3, "window_seconds": 8.0}


def test_scores_during_the_run_equal_those_of_the_checkpoint(run: Path, embedded: Path, tmp_path: Path) -> None:
    logged = {name: value for row in read_metrics(run) for name, value in row.items() if name.startswith("eval/")}
    chance = {name: logged.pop(name) for name in list(logged) if name.startswith("eval/chance/")}
    if run.name.startswith("howto100m"):
        assert logged == pytest.approx(accuracy_by_hand(last(run), embedded))
        return
    benchmark = {"charades_ego": charades_ego, "epic_mir": epic_mir}[run.name].BENCHMARK
    reading = ["data.workers=0", "resamples=10", "report=false", "cache=null"]
    assert evaluate(benchmark, [f"--checkpoint={run}", f"--shards={embedded}", f"output={tmp_path}", *reading]) == 0
    scores = {score.name: score for score in Result.load(tmp_path).scores}
    names = {"charades_ego": ["mAP"], "epic_mir": ["mAP", "nDCG"]}[run.name]
    assert logged == pytest.approx({f"eval/{run.name}/{name}": scores[name].value for name in names})
    levels = {f"eval/chance/{run.name}/{name}": level for name in names if (level := scores[name].chance) is not None}
    assert chance == pytest.approx(levels)


def accuracy_by_hand(checkpoint: Path, root: Path) -> dict[str, float]:
    """Return the head's accuracy on the videos of val, one at a time."""
    model, head = HierVL.from_checkpoint(checkpoint), weights(checkpoint)
    truth = {video.key: video.label for video in read_companion(root, "howto100m", "val", HowToLabels).videos}
    reading = LoaderConfig(global_batch=1, workers=0, frames=2, windows=3, size=16)
    ranks = []
    with Loader(root, "howto100m", "val", reading, is_training=False) as loader, torch.no_grad():
        for batch in loader:
            pooled = model.encode_video(normalise(batch.video[0])).mean(dim=0)
            logits = head["head.weight"] @ pooled + head["head.bias"]
            ranks.append(int((logits > logits[truth[batch.keys[0]]]).sum()))
    assert len(ranks) == len(truth)
    return {f"eval/howto100m/head top-{k}": 100 * float(np.mean([rank < k for rank in ranks])) for k in (1, 5)}


@pytest.mark.parametrize("run", ["epic_mir"], indirect=True)
def test_a_killed_run_resumes_to_the_same_losses(run: Path, checkpoint: Path, embedded: Path, tmp_path: Path) -> None:
    folder, command = tmp_path / "killed", settings("epic_mir", checkpoint)
    with ended(start(embedded, folder, entry="finetune", settings=command)) as killed:
        assert killed.reached(5), killed.output()
        killed.signal(signal.SIGKILL)
        assert killed.wait(40) != [0]
    assert tuned("epic_mir", checkpoint, embedded, folder) == losses(run)


@pytest.mark.parametrize("run", ["howto100m_probe"], indirect=True)
def test_full_fine_tuning_continues_from_the_head_of_a_probe(run: Path, tmp_path: Path) -> None:
    opened = open_start(config_of("howto100m_full", f"init_from={run}", "sample.frames=2"))
    head = weights(last(run))["head.weight"]
    same = build_model(opened, trained=["video"], classes=len(head))
    torch.testing.assert_close(same.state_dict()["head.weight"], head, rtol=0, atol=0)
    other = build_model(opened, trained=["video"], classes=len(head) + 1)
    assert len(other.state_dict()["head.weight"]) == len(head) + 1


def test_more_frames_than_slots_extend_the_checkpoint_with_zeros(checkpoint: Path) -> None:
    towers = open_start(config_of("charades_ego", f"init_from={checkpoint}", "sample.frames=6")).model
    slots = towers.video.temporal_embed[0]
    assert len(slots) == towers.config.num_frames == 6
    assert torch.equal(slots[:4], weights(checkpoint)["video.temporal_embed"][0]) and not slots[4:].any()


def test_fine_tuning_starts_from_the_average_if_there_is_one(checkpoint: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    moved = {name: value + 1 for name, value in weights(copy).items()}
    save_file(moved, copy / EMA)
    for switch, expected in (("true", moved), ("false", weights(copy))):
        towers = open_start(config_of("epic_mir", f"init_from={copy}", f"average={switch}", "sample.frames=2")).model
        assert all(torch.equal(value, expected[name]) for name, value in towers.state_dict().items())


@needs_golden
def test_fine_tuning_starts_from_a_released_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    model = json.dumps(json.loads((GOLDEN / "config.json").read_bytes()))
    released = [f"init_from={GOLDEN / 'checkpoint.pth'}", f"model={model}", f"tokenizer.source={tmp_path}"]
    Tokenizer.build(["opens the drawer"], vocab_size=30, max_length=16).save(tmp_path)
    config = config_of("charades_ego", *released, "sample.frames=2")
    opened = open_start(config)
    expected = HierVL.from_checkpoint(GOLDEN / "checkpoint.pth", opened.model.config)
    for name, value in build_model(opened, trained=["video"], classes=None).state_dict().items():
        assert torch.equal(value, expected.state_dict()[name])
    assert opened.tokenizer.size == 7


@pytest.mark.parametrize("run", ["charades_ego"], indirect=True)
def test_a_run_stands_for_its_best_or_newest_checkpoint(run: Path, tmp_path: Path) -> None:
    assert find_checkpoint(run) == last(run)  # the only one with a score
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    best = json.loads((copy / "checkpoints" / "best.json").read_bytes()) | {"folder": "step-00000006"}
    (copy / "checkpoints" / "best.json").write_text(json.dumps(best))
    assert find_checkpoint(copy).name == "step-00000006"
    assert find_checkpoint(copy, "newest").name == f"step-{STEPS:08d}"


@pytest.fixture
def own(embedded: Path, tmp_path: Path) -> Path:
    """A copy of the dataset that a test may damage."""
    return Path(shutil.copytree(embedded, tmp_path / "shards"))


def error_of(
    task: str, checkpoint: Path, root: Path, folder: Path, capsys: pytest.CaptureFixture[str], *overrides: str
) -> str:
    """Run a task that cannot be carried out; return the message."""
    command = [*settings(task, checkpoint), f"data.root={root}", f"run.folder={folder}", *overrides]
    assert finetune.main(command) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize(
    ("task", "overrides", "message"),
    [
        ("charades_ego", ["data.root=nowhere"], "nowhere"),
        ("charades_ego", ["data.split=val"], "no split charades_ego/val"),
        ("charades_ego", ["data.split=test"], "charades_ego/test has whole videos"),
        ("charades_ego", ["freeze=[video, video_projection, text, text_projection]"], "nothing left to train"),
        ("charades_ego", ["schedule.batch=64"], "fewer samples than one global batch of 64; lower schedule.batch"),
        ("charades_ego", ["init_from=absent"], "absent: no such checkpoint"),
        ("charades_ego", ["init_from=null"], "init_from is not set"),
        ("charades_ego", ["model={depth: 3}"], "has its own sizes"),
        ("howto100m_probe", ["task.classes=2"], "raise task.classes"),
        ("howto100m_probe", ["task.pooling=aggregator", "sample.windows=7"], "6 slots of the checkpoint's aggregator"),
    ],
)
def test_impossible_requests_are_named_with_exit_code_2(
    checkpoint: Path,
    embedded: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    task: str,
    overrides: list[str],
    message: str,
) -> None:
    if overrides[0].startswith(("init_from", "checkpoint")):  # as without --checkpoint, which has the last word
        command = [word for word in settings(task, checkpoint) if not word.startswith("--checkpoint")]
        assert finetune.main([*command, f"data.root={embedded}", f"run.folder={tmp_path / 'run'}", *overrides]) == 2
        assert message in capsys.readouterr().err
    else:
        assert message in error_of(task, checkpoint, embedded, tmp_path / "run", capsys, *overrides)


def test_a_missing_split_is_named(
    checkpoint: Path, embedded: Path, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for set_name, split in (("epic_mir", "train"), ("charades_ego", "test")):
        remove_split(own, set_name, split)
    message = error_of("epic_mir", checkpoint, own, tmp_path / "run", capsys)
    assert "no split epic_mir/train" in message and "charades_ego/train" in message
    message = error_of("charades_ego", checkpoint, own, tmp_path / "run", capsys, "evaluation.at_end=true")
    assert "no split charades_ego/test" in message


def test_samples_without_a_label_are_named(
    checkpoint: Path, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    epic, howto = (
        read_companion(own, "epic_mir", "train", EpicLabels),
        read_companion(own, "howto100m", "train", HowToLabels),
    )
    write_companion(own / "epic_mir" / "train" / "labels.json", replace(epic, videos=epic.videos[1:]))
    write_companion(own / "howto100m" / "train" / "labels.json", replace(howto, videos=howto.videos[1:]))
    sign_anew(own)
    for task, key in (("epic_mir", epic.videos[0].key), ("howto100m_full", howto.videos[0].key)):
        message = error_of(task, checkpoint, own, tmp_path / task, capsys)
        assert f"no label for {key}" in message


def test_a_damaged_checkpoint_is_an_error_before_training(
    checkpoint: Path, embedded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    (copy / WEIGHTS).write_bytes((copy / WEIGHTS).read_bytes()[:-5])
    assert "damaged or incomplete safetensors file" in error_of("epic_mir", copy, embedded, tmp_path / "run", capsys)


def remove_split(root: Path, set_name: str, split: str) -> None:
    """Take a split out of a dataset's manifest."""
    path = root / "dataset.json"
    value = json.loads(path.read_bytes())
    value.pop("sha256")
    value["sets"][set_name].pop(split)
    value["sha256"] = hash_json(value)
    path.write_text(json.dumps(value))
    assert split not in open_dataset(root).sets[set_name]
