"""Features equal those of direct encoding, and their bytes do not depend on ranks, workers or kills."""

from __future__ import annotations

import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.embed import EmbedSettings, aggregate_windows, embed_split
from hiervl_train.checkpoint.open import open_checkpoint
from hiervl_train.models.pixels import normalise
from hiervl_train.models.speed import SpeedConfig
from shards.config import LoaderConfig
from shards.dataset import open_dataset
from shards.features import FeatureError, open_features
from shards.loader import Loader
from tests.hiervl_train.features.extraction import command, config_of, digests, extract, run
from tests.paths import REPOSITORY
from tests.shards.coded import overwrite_member

PLAIN = SpeedConfig(bf16=False, compile=False)


def test_features_equal_direct_encoding_within_their_type(made: Path, tmp_path: Path) -> None:
    found = extract(config_of(made, output=str(tmp_path / "f"))).features
    assert found is not None
    opened = open_checkpoint(made / "checkpoint")
    settings = EmbedSettings(frames=2, windows=3, micro_batch=7)
    clips = embed_split(opened.model, made / "shards", "clips", "train", settings)
    assert clips is not None
    split = found.split("clips", "train")
    video = np.concatenate([shard.array("video") for shard in split.shards])
    keys = [key for shard in split.shards for key in shard.table()["key"].to_pylist()]
    assert keys == clips.keys and video.dtype == np.float16
    np.testing.assert_allclose(video, clips.vectors, rtol=2e-3, atol=2e-3)

    summaries = embed_split(opened.model, made / "shards", "summaries", "train", settings)
    assert summaries is not None
    (shard,) = found.split("summaries", "train").shards
    windows = np.asarray(shard.array("video"), np.float32).reshape(-1, 3, 8)
    np.testing.assert_allclose(windows, summaries.vectors, rtol=2e-3, atol=2e-3)
    aggregate = aggregate_windows(opened.model, summaries.vectors, PLAIN, torch.device("cpu"))
    np.testing.assert_allclose(shard.array("aggregate"), aggregate, rtol=4e-3, atol=4e-3)


def test_texts_and_narrations_are_those_of_the_records(made: Path, tmp_path: Path) -> None:
    found = extract(config_of(made, output=str(tmp_path / "f"), dtype="float32", extractor={"video": False})).features
    assert found is not None
    opened = open_checkpoint(made / "checkpoint")
    (shard,) = found.split("summaries", "train").shards
    table = shard.table()
    ids, mask = opened.tokenizer([f"#C C part {i}" for i in range(2)])
    with torch.inference_mode():
        expected = opened.model.encode_text(ids, mask).numpy()
    rows = table.slice(2, 1).to_pylist()[0]
    assert rows["narrations_rows"] == 2 and rows["rows"] == 1 and rows["tag_noun"] == [2, 7]
    first = rows["narrations_first_row"]
    np.testing.assert_allclose(shard.array("narrations")[first : first + 2], expected, atol=1e-5)


def test_a_tower_layer_gives_the_projection_its_input(made: Path, tmp_path: Path) -> None:
    config = config_of(made, output=str(tmp_path / "f"), dtype="float32", extractor={"layer": "tower"})
    found = extract(config).features
    assert found is not None
    model = open_checkpoint(made / "checkpoint").model
    settings = LoaderConfig(global_batch=7, frames=2, size=16, workers=0)
    with Loader(str(made / "shards"), "clips", "train", settings, is_training=False) as loader:
        batch = next(iter(loader))
    with torch.inference_mode():
        expected = model.video(normalise(batch.video)).numpy()
    shard = found.split("clips", "train").shards[0]
    assert shard.array("video").shape == (7, 16)
    np.testing.assert_allclose(shard.array("video"), expected, atol=1e-5)


def test_an_undecodable_sample_has_no_rows_and_a_reason(own: Path) -> None:
    dataset = open_dataset(own / "shards")
    overwrite_member(dataset, 1, 2, bytes(4000), at=40)
    outcome = extract(config_of(own, max_failed_fraction=1.0))
    assert outcome.features is not None and outcome.failed == 1
    shard = outcome.features.split("clips", "train").shards[1]
    table = shard.table()
    assert table["rows"].to_pylist() == [1, 1, 0, 1, 1] and table["text_rows"].to_pylist() == [1] * 5
    (key,) = shard.failed()
    assert key == table["key"].to_pylist()[2]


def test_withdrawn_videos_have_no_rows(own: Path) -> None:
    (own / "shards" / "denylist.txt").write_text("video-001\n")
    features = extract(config_of(own)).features
    assert features is not None
    table = features.split("clips", "train").shards[0].table()
    assert table["rows"].to_pylist() == [1, 1, 1, 1, 0, 0, 0]


@pytest.mark.medium
def test_bytes_do_not_depend_on_ranks_workers_or_kills(made: Path, tmp_path: Path) -> None:
    run(made, f"output={tmp_path / 'one'}")
    expected = digests(tmp_path / "one")
    run(made, f"output={tmp_path / 'ranks'}", "distributed.backend=gloo", ranks=2)
    assert digests(tmp_path / "ranks") == expected
    run(made, f"output={tmp_path / 'dask'}", "dask.workers=2")
    assert digests(tmp_path / "dask") == expected
    process = subprocess.Popen(
        command(made, f"output={tmp_path / 'killed'}"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not list((tmp_path / "killed").glob("*/*/*_stats.json")):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = run(made, f"output={tmp_path / 'killed'}")
    assert digests(tmp_path / "killed") == expected
    assert "are done" in done.stdout


def test_what_exists_is_not_extracted_again(made: Path, tmp_path: Path) -> None:
    config = config_of(made, output=str(tmp_path / "f"))
    extract(config)
    before = digests(tmp_path / "f")
    again = extract(config)
    assert again.samples == 0 and digests(tmp_path / "f") == before
    (tmp_path / "f" / "clips" / "train" / "00001_stats.json").unlink()
    assert extract(config).samples == 5 and digests(tmp_path / "f") == before


def test_the_example_of_the_docs_reads_every_sample(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extract(config_of(made, output=str(tmp_path / "f")))
    section = (REPOSITORY / "docs" / "shards.md").read_text().split("## Features\n", 1)[1]
    example = section.split("```python\n", 1)[1].split("```", 1)[0]
    exec(example, {"ROOT": str(made / "shards"), "NAME": str(tmp_path / "f")})
    assert capsys.readouterr().out.count("(1, 8) float16") == 18


def test_features_of_other_weights_or_shards_are_refused(made: Path, own: Path, tmp_path: Path) -> None:
    config = config_of(made, output=str(tmp_path / "f"))
    extract(config)
    with pytest.raises(FeatureError, match="another extractor"):
        extract(replace(config, dtype="float32"))
    features = open_features(tmp_path / "f")
    fingerprint = open_dataset(own / "shards").split("clips", "train").fingerprint
    assert features.split("clips", "train", fingerprint=fingerprint).samples == 18
    with pytest.raises(FeatureError, match="of other shards"):
        features.split("clips", "train", fingerprint="0" * 64)
