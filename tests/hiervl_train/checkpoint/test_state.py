"""The optimiser's state is restored exactly, for any optimiser, by parameter name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hiervl_train.checkpoint.manager import Checkpoints
from hiervl_train.checkpoint.state import OptimizerState
from hiervl_train.models.errors import CheckpointError
from hiervl_train.random_states import RandomStates
from tests.hiervl_train.run_states import BY_STEPS, tiny_state


class Net(nn.Module):
    """Two modules, of which the first steps do not use one, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 4))
        self.aggregator = nn.Linear(4, 4)

    def step(self, optimizer: torch.optim.Optimizer, number: int) -> float:
        x = self.encoder(torch.randn(5, 6))
        loss = (self.aggregator(x) if number > 4 else x).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, betas=(0.8, 0.99), eps=1e-6),
    "fused adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
    "lr is a tensor": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.03), amsgrad=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "plain sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-2),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "rprop": lambda p: torch.optim.Rprop(p, lr=1e-2),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("stop", [3, 6])  # before the aggregator's first step, and after it
def test_steps_after_a_restore_equal_those_of_an_uninterrupted_run(
    tmp_path: Path, make: Callable[..., torch.optim.Optimizer], stop: int
) -> None:
    torch.manual_seed(0)
    net = Net()
    optimizer = make(net.parameters())
    for number in range(stop):
        net.step(optimizer, number)
    moved = {name for name, parameter in net.named_parameters() if parameter in optimizer.state}
    if isinstance(optimizer, torch.optim.AdamW):
        assert ("aggregator.weight" in moved) == (stop > 4), "a parameter that was not updated has no state"
    with Checkpoints(tmp_path, BY_STEPS) as checkpoints:
        state = tiny_state(
            stop,
            model=net.state_dict(),
            optimizer=OptimizerState.take(optimizer, net.named_parameters()),
            random=RandomStates.take(),
        )
        checkpoints.save(state)
        expected = [net.step(optimizer, number) for number in range(stop, stop + 3)]

        again = Net()
        resumed = make(again.parameters())
        loaded = checkpoints.load_latest()
    assert loaded is not None
    again.load_state_dict(dict(loaded.model))
    loaded.optimizer.restore(resumed, again.named_parameters())
    assert {name for name, parameter in again.named_parameters() if parameter in resumed.state} == moved
    assert isinstance(resumed.param_groups[0].get("betas", ()), tuple)
    loaded.random.restore()
    assert [again.step(resumed, number) for number in range(stop, stop + 3)] == expected
    for name, tensor in net.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def test_optimiser_state_is_stored_by_name_and_keeps_its_dtypes(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW([weight])
    optimizer.state[weight] = {"step": torch.tensor(4.0), "exp_avg": torch.rand(3), "exp_avg_sq": torch.rand(3)}
    state = OptimizerState.take(optimizer, [("video.weight", weight)])
    with Checkpoints(tmp_path, BY_STEPS) as checkpoints:
        checkpoints.save(tiny_state(1, optimizer=state))
        loaded = checkpoints.load_latest()
    stored = load_file(tmp_path / "step-00000001" / "optimizer.safetensors")
    assert sorted(stored) == ["video.weight.exp_avg", "video.weight.exp_avg_sq", "video.weight.step"]
    resumed = torch.optim.AdamW([weight])
    assert loaded is not None
    loaded.optimizer.restore(resumed, [("video.weight", weight)])
    for key, value in optimizer.state[weight].items():
        assert resumed.state[weight][key].dtype == torch.float32
        assert torch.equal(resumed.state[weight][key], value)


def test_an_optimiser_does_not_change_the_state_it_was_restored_from() -> None:
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters())
    net.step(optimizer, 9)
    taken = OptimizerState.take(optimizer, net.named_parameters())
    kept = {name: tensor.clone() for name, tensor in taken.tensors.items()}
    other = Net()
    resumed = torch.optim.AdamW(other.parameters())
    taken.restore(resumed, other.named_parameters())
    other.step(resumed, 9)
    assert all(torch.equal(taken.tensors[name], tensor) for name, tensor in kept.items())


def test_a_state_of_other_parameters_is_an_error_by_name() -> None:
    net = Net()
    state = OptimizerState.take(torch.optim.AdamW(net.parameters()), net.named_parameters())
    half = torch.optim.AdamW(net.encoder.parameters())
    with pytest.raises(CheckpointError, match=r"only in the checkpoint: aggregator\.bias, aggregator\.weight"):
        state.restore(half, net.named_parameters())
    with pytest.raises(ValueError, match="have no name"):
        OptimizerState.take(half, net.aggregator.named_parameters())
