"""N ranks of B samples have the loss and the parameter gradients of one rank of N·B, in real processes over gloo."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hiervl_train.collectives import _buckets, all_gather, average_gradients
from tests.hiervl_train import ranks

WORLD = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run 4 ranks, of which 2 go on as a world of 2, and return the folder with what each one computed."""
    folder = tmp_path_factory.mktemp("ranks")
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "tests.hiervl_train.ranks"]
    running = [
        subprocess.Popen([*command, str(rank), str(WORLD), str(folder)], cwd=root, stderr=subprocess.PIPE, text=True)
        for rank in range(WORLD)
    ]
    try:
        errors = [process.communicate(timeout=300)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * WORLD, "\n".join(errors)
    return folder


@pytest.fixture(scope="module")
def alone() -> dict[str, ranks.Result]:
    """Return what one rank with the whole batch computes."""
    return ranks.run(0, 1)


@pytest.mark.parametrize("world", [WORLD, WORLD // 2])
@pytest.mark.parametrize("scenario", list(ranks.scenarios()))
def test_ranks_together_are_one_rank_with_the_whole_batch(folder, alone, scenario, world):
    expected_loss, expected = alone[scenario]
    for rank in range(world):
        loss, gradients = torch.load(folder / f"{world}-{rank}.pt")[scenario]
        torch.testing.assert_close(loss, expected_loss, rtol=1e-9, atol=1e-9)
        assert gradients.keys() == expected.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-9, msg=lambda t, n=name: f"{n} {t}")


def test_cached_gradients_are_those_of_the_plain_step(alone):
    for kind in ("child", "parent", "margin"):
        for name, gradient in alone[kind][1].items():
            torch.testing.assert_close(alone[f"cached {kind}"][1][name], gradient, rtol=1e-9, atol=1e-9)


def test_child_steps_leave_the_aggregator_without_gradients_and_parent_steps_do_not(alone):
    assert not any(name.startswith("aggregator.") for name in alone["child"][1])
    assert any(name.startswith("aggregator.") for name in alone["parent"][1])


@pytest.mark.parametrize("world", [WORLD, WORLD // 2])
def test_a_gathered_row_gets_the_gradients_of_every_ranks_loss(folder, world):
    for rank in range(world):
        weights = torch.arange(world * 6, dtype=torch.float64).view(world * 2, 3)
        expected = weights[rank * 2 : rank * 2 + 2] * sum(range(1, world + 1))
        torch.testing.assert_close(torch.load(folder / f"{world}-{rank}.pt")["gather"], expected)


def test_without_a_process_group_nothing_is_gathered_or_averaged():
    x = torch.ones(2, 3, requires_grad=True)
    assert all_gather(x) is x
    parameter = torch.nn.Parameter(torch.ones(2))
    average_gradients([parameter])
    assert parameter.grad is None


def test_buckets_keep_the_order_the_type_and_about_the_size():
    tensors = [torch.zeros(3), torch.zeros(4), torch.zeros(100), torch.zeros(1).double(), torch.zeros(1).double()]
    assert [[t.numel() for t in bucket] for bucket in _buckets(tensors, 32)] == [[3, 4], [100], [1, 1]]
    assert list(_buckets([], 32)) == []
