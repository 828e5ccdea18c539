"""Metrics: strict JSON lines, curves without gaps or repeated steps after a kill, averages, TensorBoard and W&B."""

from __future__ import annotations

import json
import logging
import math
import mmap
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

from configs.loading import ConfigError, from_dict
from hiervl_train.monitor.metrics import (
    METRICS,
    MetricsConfig,
    MetricsError,
    MetricsWriter,
    Window,
    line,
    memory,
    read_columns,
    read_metrics,
)

QUIET = MetricsConfig(tensorboard=False)
NAMES = st.text(min_size=1, max_size=8).filter(lambda name: name not in ("step", "time"))


def strict(data: bytes) -> Any:
    """Parse standard JSON, which has no NaN and no Infinity."""

    def refuse(literal: str) -> None:
        raise AssertionError(f"{literal} is not JSON")

    return json.loads(data, parse_constant=refuse)


def written(folder: Path, steps: range, *, first_step: int = 1, config: MetricsConfig = QUIET) -> None:
    with MetricsWriter(folder, config, first_step=first_step) as writer:
        for step in steps:
            writer.write(step, {"loss/child": 100 * first_step + step})


@settings(deadline=None)
@given(st.dictionaries(NAMES, st.one_of(st.floats(), st.integers(-(2**62), 2**62), st.booleans())))
def test_a_line_is_strict_json_for_any_values(values: dict[str, float]) -> None:
    data = line(7, 1.5, values)
    assert data.endswith(b"\n") and data.count(b"\n") == 1
    row = strict(data)
    assert (row.pop("step"), row.pop("time")) == (7, 1.5)
    assert row == {name: value if math.isfinite(value) else None for name, value in values.items()}


def test_torch_and_numpy_numbers_are_accepted() -> None:
    row = strict(line(1, 0.0, {"a": np.float32(0.5), "b": torch.tensor(2.0), "c": np.float64("nan")}))  # type: ignore[dict-item]
    assert (row["a"], row["b"], row["c"]) == (0.5, 2.0, None)


def test_a_metric_with_a_reserved_name_is_an_error() -> None:
    with pytest.raises(ValueError, match="step"):
        line(1, 0.0, {"step": 3.0})


@settings(deadline=None)
@given(st.lists(st.dictionaries(NAMES, st.one_of(st.floats(), st.integers(-(2**80), 2**80)), max_size=4), max_size=8))
def test_columns_equal_the_lines(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, float]]) -> None:
    folder = tmp_path_factory.mktemp("run")
    (folder / METRICS).write_bytes(b"".join(line(step, 0.5, row) for step, row in enumerate(rows)))
    columns = read_columns(folder)
    assert columns.keys() == {name for row in rows for name in row} | ({"step", "time"} if rows else set())
    for name, column in columns.items():
        wanted = [{"step": step, "time": 0.5, **row}.get(name, math.nan) for step, row in enumerate(rows)]
        wanted = [value if math.isfinite(value) else math.nan for value in wanted]
        np.testing.assert_allclose(column, np.array(wanted, dtype=np.float64), rtol=1e-15)


def test_a_resumed_run_has_every_step_once(tmp_path: Path) -> None:
    written(tmp_path, range(1, 21))
    written(tmp_path, range(11, 31), first_step=11)  # the last checkpoint was at step 10
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, 31))
    assert [row["loss/child"] for row in rows] == [*range(101, 111), *range(1111, 1131)]


def test_an_incomplete_last_line_is_dropped(tmp_path: Path) -> None:
    whole = b"".join(line(step, 0.0, {"loss/child": 123456.75}) for step in (1, 2))
    for end in range(whole.index(b"\n") + 2, len(whole)):
        (tmp_path / METRICS).write_bytes(whole[:end])
        assert [row["step"] for row in read_metrics(tmp_path)] == [1]
        assert list(read_columns(tmp_path)["step"]) == [1]
        written(tmp_path, range(2, 4), first_step=2)
        rows = [strict(piece) for piece in (tmp_path / METRICS).read_bytes().splitlines()]
        assert [row["step"] for row in rows] == [1, 2, 3]


@pytest.mark.parametrize("damage", [b"\0\0\0\0", b"[]", b'{"step": "2"}', b'{"step": 1e300}', b"{", b'{"step": -1}'])
def test_a_damaged_line_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: bytes
) -> None:
    path = tmp_path / METRICS
    path.write_bytes(line(1, 0.0, {"a": 1.0}) + damage + b"\n" + line(3, 0.0, {"a": 3.0}))
    with caplog.at_level(logging.WARNING):
        assert [row["step"] for row in read_metrics(tmp_path)] == [1, 3]
    assert f"{path}, line 2" in caplog.text
    assert list(read_columns(tmp_path)["a"]) == [1.0, 3.0]


def test_a_file_with_nothing_to_drop_is_not_rewritten(tmp_path: Path) -> None:
    written(tmp_path, range(1, 6))
    before = (tmp_path / METRICS).stat().st_ino
    written(tmp_path, range(6, 8), first_step=6)
    assert (tmp_path / METRICS).stat().st_ino == before


def test_a_folder_without_metrics_has_none(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == [] and read_columns(tmp_path) == {}


_WRITER = """
import signal, sys
from hiervl_train.monitor.metrics import MetricsConfig, MetricsWriter
writer = MetricsWriter(sys.argv[1], MetricsConfig(tensorboard=False), first_step=1)
for step in range(1, 1001):
    writer.write(step, {"loss/child": 1.5})
print("written", flush=True)
signal.pause()
"""


def test_a_kill_loses_no_written_line(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"written\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(1, 1001))


def test_tensorboard_has_the_same_values_and_repeated_steps_once(tmp_path: Path) -> None:
    config = MetricsConfig()
    written(tmp_path, range(1, 9), config=config)
    time.sleep(1.1)  # the names of event files, which order them, have a resolution of 1 s
    with MetricsWriter(tmp_path, config, first_step=5) as writer:
        for step in range(5, 11):
            writer.write(step, {"loss/child": 500 + step, "grad_norm": math.inf if step == 7 else 1.0})
        writer.sync()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    shown = [(event.step, event.value) for event in events.Scalars("loss/child")]
    assert shown == [(row["step"], row["loss/child"]) for row in read_metrics(tmp_path)]
    assert [event.step for event in events.Scalars("grad_norm")] == [5, 6, 8, 9, 10]


def wandb_records(path: Path) -> Iterator[Record]:
    """Yield the records of an offline W&B run: LevelDB's log format after a header of 7 bytes."""
    data, position, record = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if 2**15 - position % 2**15 < 7:  # the end of a block of 32 KiB is padding
            position += 2**15 - position % 2**15
            continue
        size, kind = struct.unpack_from("<HB", data, position + 4)
        record += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # a whole record, or the last chunk of one
            yield Record.FromString(record)
            record = b""


def wandb_history(folder: Path) -> list[dict[str, Any]]:
    """Return the logged rows of all offline W&B runs in a folder, in order."""
    paths = sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))
    records = [record for path in paths for record in wandb_records(path) if record.HasField("history")]
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
    ]


def test_wandb_gets_the_same_values_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "config.yaml").write_text("run: {seed: 3}\n")
    config = MetricsConfig(tensorboard=False, wandb="hiervl-test")
    with MetricsWriter(tmp_path, config, first_step=1) as writer:
        for step in (1, 2):
            writer.write(step, {"loss/child": 4.0 / step, "grad_norm": math.inf if step == 1 else 1.0})
    end = time.monotonic() + 20
    while len(history := wandb_history(tmp_path)) < 2 and time.monotonic() < end:
        time.sleep(0.05)  # W&B's service writes the file a moment after `finish`
    assert [(row["_step"], row["loss/child"], row.get("grad_norm")) for row in history] == [
        (1, 4.0, None),
        (2, 2.0, 1.0),
    ]
    run_id = (tmp_path / "wandb" / "run-id.txt").read_text()
    assert [path.name.rsplit("-", 1)[1] for path in (tmp_path / "wandb").glob("offline-run-*")] == [run_id]


def test_wandb_that_is_not_installed_is_an_error_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        MetricsError, match=r"metrics\.wandb = mine.*pip install 'hiervl\[wandb\]'.*metrics\.wandb=null"
    ):
        MetricsWriter(tmp_path, MetricsConfig(tensorboard=False, wandb="mine"), first_step=1)


STEPS = st.lists(
    st.fixed_dictionaries(
        {
            "step_type": st.sampled_from(["child", "parent"]),
            "loss": st.floats(-100, 100),
            "grad_norm": st.floats(0, 100),
            "clips": st.integers(0, 512),
            "flops": st.floats(0, 1e15),
            "wait_seconds": st.floats(0, 2),
            "is_skipped": st.booleans(),
        }
    ),
    min_size=1,
    max_size=20,
)


@settings(deadline=None)
@given(STEPS, st.integers(1, 8), st.floats(0.5, 100))
def test_a_window_averages_its_steps(steps: list[dict[str, Any]], world: int, seconds: float) -> None:
    now = [5.0]
    window = Window(world=world, peak_flops=2e14, clock=lambda: now[0])
    for step in steps:
        window.add(**step)
    now[0] += seconds
    values = window.values(lr=3e-5)
    assert values["lr"] == 3e-5 and values["skipped_steps"] == sum(step["is_skipped"] for step in steps)
    good = [step for step in steps if not step["is_skipped"]]
    for step_type in ("child", "parent"):
        losses = [step["loss"] for step in good if step["step_type"] == step_type]
        waits = [step["wait_seconds"] for step in steps if step["step_type"] == step_type]
        assert (f"loss/{step_type}" in values) == bool(losses) and (f"wait_seconds/{step_type}" in values) == bool(
            waits
        )
        if losses:
            assert values[f"loss/{step_type}"] == pytest.approx(sum(losses) / len(losses))
        if waits:
            assert values[f"wait_seconds/{step_type}"] == pytest.approx(sum(waits) / len(waits))
    if good:
        assert values["grad_norm"] == pytest.approx(sum(step["grad_norm"] for step in good) / len(good))
    clips = sum(step["clips"] for step in steps)
    assert values["clips_per_second"] == pytest.approx(clips * world / seconds)
    assert values["clips_per_second_per_gpu"] == pytest.approx(clips / seconds)
    assert values["mfu"] == pytest.approx(sum(step["flops"] for step in steps) / seconds / 2e14)
    assert values["data_wait_fraction"] == pytest.approx(sum(step["wait_seconds"] for step in steps) / seconds)
    assert values["seconds_per_step"] == pytest.approx(seconds / len(steps))


def test_a_window_resets_after_its_values() -> None:
    now = [0.0]
    window = Window(clock=lambda: now[0])
    window.add("child", loss=4.0, grad_norm=1.0, clips=8)
    window.add_data({"samples": 8.0, "wait_seconds": 3.0, "failed/decode": 2.0})
    window.add_data({"samples": 4.0, "failed/decode": 1.0})
    assert window.steps == 1
    now[0] = 2.0
    first = window.values(lr=1.0)
    assert (first["data/samples"], first["data/failed/decode"]) == (12.0, 3.0)
    assert "data/wait_seconds" not in first and "mfu" not in first
    window.add("parent", loss=2.0, grad_norm=3.0, clips=1)
    now[0] = 6.0
    second = window.values(lr=0.5)
    assert second["loss/parent"] == 2.0 and second["grad_norm"] == 3.0 and second["clips_per_second"] == 0.25
    assert not {"loss/child", "data/samples", "data/failed/decode"} & second.keys()


def test_a_non_finite_loss_is_null(tmp_path: Path) -> None:
    window = Window()
    for loss in (1.0, math.nan):
        window.add("child", loss=loss, grad_norm=math.inf, clips=1)
    with MetricsWriter(tmp_path, QUIET, first_step=1) as writer:
        writer.write(1, window.values(lr=1.0))
    (row,) = read_metrics(tmp_path)
    assert row["loss/child"] is None and row["grad_norm"] is None and row["clips_per_second"] > 0


def test_memory_is_that_of_this_process() -> None:
    before = memory()["memory/process_gib"]
    with mmap.mmap(-1, 2**28) as held:  # a quarter of a GiB that no allocator had before
        held.write(bytes(2**28))
        grown = memory()["memory/process_gib"] - before
    assert 0.2 < grown < 0.4


@pytest.mark.parametrize(("field", "value"), [("every_steps", 0), ("peak_tflops", 0.0), ("peak_tflops", math.inf)])
def test_an_invalid_setting_is_named(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=field):
        from_dict(MetricsConfig, {field: value})
