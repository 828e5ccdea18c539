"""Micro-batches by memory: as many rows as fit, the same on all ranks, kept over resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hiervl_train.distributed import DistributedContext
from hiervl_train.fit import GIB, FitError, _candidates, _kept, _needs_by_counting, fit
from hiervl_train.models import HierVL
from hiervl_train.random_states import RandomStates
from hiervl_train.steps import PretrainSteps
from tests.hiervl_train.made_up import batch_of, config_of, steps_of, tokenizer_of
from tests.hiervl_train.runs import finished

AUTO = {"clip_micro_batch": "auto", "summary_micro_batch": "auto"}


def steps_for(level: str | None = None, *, world: int = 1) -> tuple[HierVL, PretrainSteps]:
    """Return steps of both levels, or of one."""
    objective = {"child": {"parent": None}, "parent": {"child": None}, None: {}}[level]
    config = config_of(schedule=AUTO, objective=objective)
    model, _ = steps_of(config)
    return model, PretrainSteps(model, tokenizer_of(config), config, world=world)


def chosen(memory_gib: float | None, level: str | None = None, *, later: int = 0, world: int = 1) -> dict[str, Any]:
    model, steps = steps_for(level, world=world)
    fit(steps.micro_batches, model, DistributedContext(), later_bytes=later, memory_gib=memory_gib)
    return dict(steps.micro_batches.size)


def needed(step_type: str, rows: int) -> float:
    model, steps = steps_for()
    return _needs_by_counting(model, lambda count: steps.micro_batches.probe(step_type, count), rows) / GIB


def test_the_whole_share_is_encoded_at_once_where_it_fits() -> None:
    assert chosen(None) == {"child": 8, "parent": 4}
    assert chosen(1.0) == {"child": 8, "parent": 4}
    assert chosen(1.0, world=2) == {"child": 4, "parent": 2}


def test_less_memory_gives_the_largest_even_part_that_fits() -> None:
    for level, share in {"child": 8, "parent": 4}.items():
        for rows in (share, share // 2, 1):
            room = needed(level, rows)
            assert chosen(room, level)[level] == rows
            assert chosen(room * 1.0001 + 1000 / GIB, level, later=1000)[level] == rows
        assert chosen(needed(level, share), level, later=1000)[level] < share  # what is still allocated is left free


def test_counted_memory_is_what_a_real_encoding_keeps() -> None:
    """Extrapolated from one and two rows, within a few percent of five rows."""
    model, steps = steps_of(config_of(schedule=AUTO))

    def probe(count: int) -> None:
        steps.micro_batches.probe("child", count)

    parameters = sum(p.nbytes for p in model.parameters())
    assert _needs_by_counting(model, probe, 5) - 2 * parameters == pytest.approx(_kept(model, probe, 5), rel=0.03)


def test_too_little_memory_is_an_error_that_says_what_to_set() -> None:
    with pytest.raises(FitError, match=r"checkpoint_activations=true"):
        chosen(1e-6)


def test_measuring_leaves_random_states_and_gradients_as_they_were() -> None:
    model, steps = steps_of(config_of(schedule=AUTO))
    before = RandomStates.take().tensors()
    fit(steps.micro_batches, model, DistributedContext(), later_bytes=0, memory_gib=1.0)
    assert all(torch.equal(value, before[name]) for name, value in RandomStates.take().tensors().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_measured_size_gives_the_gradients_of_the_whole_share() -> None:
    gradients = []
    for memory_gib in (None, needed("child", 3)):
        model, steps = steps_for("child")
        fit(steps.micro_batches, model, DistributedContext(), later_bytes=0, memory_gib=memory_gib)
        steps.by_type["child"](batch_of("child", 8))
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)


def test_candidates_divide_a_share_evenly() -> None:
    assert list(_candidates(8)) == [8, 4, 3, 2, 1]
    assert list(_candidates(1)) == [1]


@pytest.mark.medium
def test_a_resumed_run_keeps_the_measured_size(embedded: Path, tmp_path: Path) -> None:
    """With dropout, so that another size would draw other masks: less memory after the kill changes nothing."""
    auto = ("schedule.clip_micro_batch=auto", "schedule.summary_micro_batch=auto", "model.text.dropout=0.1")
    whole = finished(embedded, tmp_path / "whole", *auto, "run.max_steps=10")
    finished(embedded, tmp_path / "resumed", *auto, "run.max_steps=5")
    resumed = finished(embedded, tmp_path / "resumed", *auto, "run.max_steps=10", "speed.memory_gib=0.003")
    assert resumed == whole
    other = finished(embedded, tmp_path / "other", *auto, "run.max_steps=10", "speed.memory_gib=0.003")
    assert other != whole
