"""What a run is at a step boundary, as plain tensors and JSON: weights, optimiser, random generators, cursors."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from hiervl_train.models.released import CheckpointError

Scalar: TypeAlias = str | int | float | bool | None
_GROUP = "param_groups"
# How an optimiser computes, not what: the machine that resumes may be of another kind than the one that saved.
_OF_THE_MACHINE = frozenset({"foreach", "fused", "capturable", "differentiable"})


@dataclass(frozen=True, kw_only=True)
class RunState:
    """All that a run needs to go on as if it had never stopped."""

    step: int  # optimiser steps done
    model: Mapping[str, Tensor]  # the model's state_dict
    optimizer: OptimizerState
    random: RandomStates  # of this rank
    ema: Mapping[str, Tensor] | None = None
    cursors: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # of the loaders, by level
    counters: Mapping[str, Scalar] = field(default_factory=dict)
    # A ModelConfig, or any configuration that `configs.loading.to_yaml` takes; as loaded: the mapping in the YAML.
    model_config: Any = None
    extra_files: Mapping[str, bytes] = field(default_factory=dict)  # by name, written as they are: tokenizer.json
    identity: Mapping[str, Any] = field(default_factory=dict)  # JSON: what the run is, for whoever compares


@dataclass(frozen=True, kw_only=True)
class OptimizerState:
    """An optimiser's state by parameter name; parameters that it has not moved yet have none."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)  # `<parameter>.exp_avg`, …; the optimiser's own
    scalars: Mapping[str, Scalar] = field(default_factory=dict)  # `<parameter>.<key>` of what is no tensor
    groups: Sequence[Mapping[str, Any]] = ()  # each with its `parameters` by name and its scalars

    @classmethod
    def take(
        cls, optimizer: torch.optim.Optimizer, named_parameters: Iterable[tuple[str, torch.nn.Parameter]]
    ) -> OptimizerState:
        """Return the state as it is; its tensors are the optimiser's own, not copies."""
        names = _names(optimizer, named_parameters)
        tensors: dict[str, Tensor] = {}
        scalars: dict[str, Scalar] = {}
        for parameter, entries in optimizer.state.items():
            for key, value in entries.items():
                _sort(f"{names[parameter]}.{key}", value, tensors, scalars)
        groups = []
        for number, group in enumerate(optimizer.param_groups):
            plain: dict[str, Any] = {"parameters": [names[parameter] for parameter in group["params"]]}
            for key, value in group.items():
                if isinstance(value, (tuple, list)) and key not in ("params", "param_names"):
                    plain[key] = list(value)
                elif key not in ("params", "param_names"):
                    _sort(f"{_GROUP}.{number}.{key}", value, tensors, plain, key)
            groups.append(plain)
        return cls(tensors=tensors, scalars=scalars, groups=groups)

    def restore(
        self, optimizer: torch.optim.Optimizer, named_parameters: Iterable[tuple[str, torch.nn.Parameter]]
    ) -> None:
        """Give an optimiser exactly this state; raise `CheckpointError` where it is of other parameters."""
        names = _names(optimizer, named_parameters)
        mine = [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]
        theirs = [list(group["parameters"]) for group in self.groups]
        if mine != theirs:
            raise CheckpointError(f"the optimiser's state is of other parameters: {_difference(mine, theirs)}")
        numbers = {name: number for number, name in enumerate(name for group in mine for name in group)}
        state: dict[int, dict[str, Any]] = {}
        for name, value in (*self.tensors.items(), *self.scalars.items()):
            parameter_name, key = name.rsplit(".", 1)
            if parameter_name in numbers:
                copy = value.clone() if isinstance(value, Tensor) else value
                state.setdefault(numbers[parameter_name], {})[key] = copy
        first = 0
        groups = []
        for number, (group, saved) in enumerate(zip(optimizer.param_groups, self.groups, strict=True)):
            groups.append(self._group(number, group, saved) | {"params": list(range(first, first + len(mine[number])))})
            first += len(mine[number])
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        self._keep_types(optimizer, names)

    def _group(self, number: int, group: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
        """Return a group's settings as saved, with what hangs on the machine as it is here."""
        merged = {key: value for key, value in group.items() if key != "params"}
        for key, value in saved.items():
            if key not in _OF_THE_MACHINE and key != "parameters":
                merged[key] = tuple(value) if isinstance(group.get(key), tuple) else value
        prefix = f"{_GROUP}.{number}."
        for name, tensor in self.tensors.items():
            if name.startswith(prefix):
                merged[name.removeprefix(prefix)] = tensor.clone()
        return merged

    def _keep_types(self, optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> None:
        """Undo the cast to the parameter's type that `load_state_dict` makes: the state is as it was."""
        for parameter, entries in optimizer.state.items():
            for key, value in entries.items():
                saved = self.tensors.get(f"{names[parameter]}.{key}")
                if saved is not None and saved.dtype != value.dtype:
                    entries[key] = saved.to(value.device, copy=True)


@dataclass(frozen=True, kw_only=True)
class RandomStates:
    """The states of every generator that a rank draws from: torch's on CPU and current GPU, Python's, numpy's."""

    cpu: Tensor
    cuda: Tensor | None  # None where there was no GPU in use
    python: tuple[Any, ...]
    numpy: tuple[Any, ...]

    @classmethod
    def take(cls) -> RandomStates:
        """Return the states as they are."""
        on_cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
        numpy_state = np.random.get_state(legacy=True)
        assert isinstance(numpy_state, tuple)
        return cls(
            cpu=torch.get_rng_state(),
            cuda=torch.cuda.get_rng_state() if on_cuda else None,
            python=random.getstate(),
            numpy=numpy_state,
        )

    @classmethod
    def seeded(cls, seed: int, step: int, rank: int) -> RandomStates:
        """Return states that follow from (seed, step, rank): where those of this rank are not to be had."""
        before = cls.take()
        number = int.from_bytes(hashlib.blake2b(f"{seed} {step} {rank}".encode(), digest_size=4).digest(), "little")
        try:
            torch.manual_seed(number)
            random.seed(number)
            np.random.seed(number)
            return cls.take()
        finally:
            before.restore()

    def restore(self) -> None:
        """Set the generators to these states."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(self.cuda)
        random.setstate(self.python)
        np.random.set_state(self.numpy)

    def tensors(self) -> dict[str, Tensor]:
        """Return the states as tensors, for a file that nothing is unpickled from."""
        version, words, gauss = self.python
        _, keys, position, has_gauss, cached = self.numpy
        tensors = {
            "torch.cpu": self.cpu,
            "python.version": torch.tensor([version]),
            "python.words": torch.tensor(words),
            "python.gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
            "numpy.keys": torch.from_numpy(keys.astype(np.int64)),
            "numpy.position": torch.tensor([position, has_gauss]),
            "numpy.gauss": torch.tensor([cached], dtype=torch.float64),
        }
        return tensors if self.cuda is None else tensors | {"torch.cuda": self.cuda}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> RandomStates:
        """Return the states that `tensors` gave."""
        gauss = tensors["python.gauss"].tolist()
        position, has_gauss = tensors["numpy.position"].tolist()
        return cls(
            cpu=tensors["torch.cpu"].clone(),
            cuda=tensors["torch.cuda"].clone() if "torch.cuda" in tensors else None,
            python=(
                int(tensors["python.version"].item()),
                tuple(tensors["python.words"].tolist()),
                gauss[0] if gauss else None,
            ),
            numpy=(
                "MT19937",
                tensors["numpy.keys"].numpy().astype(np.uint32),
                position,
                has_gauss,
                float(tensors["numpy.gauss"].item()),
            ),
        )


def _names(
    optimizer: torch.optim.Optimizer, named_parameters: Iterable[tuple[str, torch.nn.Parameter]]
) -> dict[Tensor, str]:
    names: dict[Tensor, str] = {parameter: name for name, parameter in named_parameters}
    nameless = [
        parameter for group in optimizer.param_groups for parameter in group["params"] if parameter not in names
    ]
    if nameless:
        raise ValueError(f"{len(nameless)} of the optimiser's parameters have no name, as {tuple(nameless[0].shape)}")
    return names


def _sort(name: str, value: Any, tensors: dict[str, Tensor], scalars: dict[str, Any], key: str | None = None) -> None:
    """Put a value to the tensors by `name`, or to the scalars by `key` (else by `name`)."""
    if isinstance(value, Tensor):
        tensors[name] = value
    elif value is None or isinstance(value, (str, int, float)):
        scalars[key or name] = value
    else:
        raise TypeError(
            f"{name}: a {type(value).__name__} in an optimiser's state cannot be kept: no tensor, no scalar"
        )


def _difference(mine: list[list[str]], theirs: list[list[str]]) -> str:
    here = {name for group in mine for name in group}
    there = {name for group in theirs for name in group}
    parts = [
        f"only {where}: {', '.join(sorted(names)[:3])}{' …' if len(names) > 3 else ''}"
        for where, names in (("here", here - there), ("in the checkpoint", there - here))
        if names
    ]
    return "; ".join(parts) or "the same names in other groups or another order"
