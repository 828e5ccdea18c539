"""The state of a run at a step boundary as tensors and JSON: weights, optimiser, random generators, cursors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from hiervl_train.models.errors import CheckpointError
from hiervl_train.random_states import RandomStates

Scalar: TypeAlias = str | int | float | bool | None
_GROUP = "param_groups"
# How an optimiser computes, not what: the machine that resumes may differ from the one that saved.
_MACHINE_SETTINGS = frozenset({"foreach", "fused", "capturable", "differentiable"})


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Everything that a run needs to continue as if it had not been stopped."""

    step: int  # optimiser steps done
    model: Mapping[str, Tensor]  # the model's state_dict
    optimizer: OptimizerState
    random: RandomStates  # of this rank
    ema: Mapping[str, Tensor] | None = None
    cursors: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # of the loaders, by name
    counters: Mapping[str, Scalar] = field(default_factory=dict)
    # A ModelConfig, or any configuration that `configs.loading.to_yaml` accepts; when loaded, the mapping in the YAML.
    model_config: Any = None
    extra_files: Mapping[str, bytes] = field(default_factory=dict)  # by name: tokenizer.json, …
    identity: Mapping[str, Any] = field(default_factory=dict)  # the run's configuration, as JSON


@dataclass(frozen=True, kw_only=True)
class OptimizerState:
    """An optimiser's state by parameter name; parameters that it has not updated yet have none."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)  # `<parameter>.exp_avg`, …: not copies
    scalars: Mapping[str, Scalar] = field(default_factory=dict)  # `<parameter>.<key>`: values that are not tensors
    groups: Sequence[Mapping[str, Any]] = ()  # each with its `parameters` by name and its scalars

    @classmethod
    def take(
        cls, optimizer: torch.optim.Optimizer, named_parameters: Iterable[tuple[str, torch.nn.Parameter]]
    ) -> OptimizerState:
        """Return the current state; its tensors are the optimiser's own, not copies."""
        names = _names(optimizer, named_parameters)
        tensors: dict[str, Tensor] = {}
        scalars: dict[str, Scalar] = {}
        for parameter, entries in optimizer.state.items():
            for key, value in entries.items():
                _sort(f"{names[parameter]}.{key}", value, tensors, scalars)
        groups: list[dict[str, Any]] = []
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
        """Set an optimiser to exactly this state; raise `CheckpointError` where the parameters differ."""
        names = _names(optimizer, named_parameters)
        mine = [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]
        theirs = [list(group["parameters"]) for group in self.groups]
        if mine != theirs:
            raise CheckpointError(f"the optimiser has other parameters than the saved one: {_difference(mine, theirs)}")
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
        """Return a group's saved settings, except those that depend on the machine."""
        merged = {key: value for key, value in group.items() if key != "params"}
        for key, value in saved.items():
            if key not in _MACHINE_SETTINGS and key != "parameters":
                merged[key] = tuple(value) if isinstance(group.get(key), tuple) else value
        prefix = f"{_GROUP}.{number}."
        for name, tensor in self.tensors.items():
            if name.startswith(prefix):
                merged[name.removeprefix(prefix)] = tensor.clone()
        return merged

    def _keep_types(self, optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> None:
        """Undo the cast to the parameter's dtype by `load_state_dict`: the state keeps its saved dtype."""
        for parameter, entries in optimizer.state.items():
            for key, value in entries.items():
                saved = self.tensors.get(f"{names[parameter]}.{key}")
                if saved is not None and saved.dtype != value.dtype:
                    entries[key] = saved.to(value.device, copy=True)


def _names(
    optimizer: torch.optim.Optimizer, named_parameters: Iterable[tuple[str, torch.nn.Parameter]]
) -> dict[Tensor, str]:
    names: dict[Tensor, str] = {parameter: name for name, parameter in named_parameters}
    nameless = [
        parameter for group in optimizer.param_groups for parameter in group["params"] if parameter not in names
    ]
    if nameless:
        raise ValueError(
            f"{len(nameless)} parameters of the optimiser have no name, the first of shape {tuple(nameless[0].shape)}"
        )
    return names


def _sort(name: str, value: Any, tensors: dict[str, Tensor], scalars: dict[str, Any], key: str | None = None) -> None:
    """Add a value to the tensors by `name`, or to the scalars by `key` (default: `name`)."""
    if isinstance(value, Tensor):
        tensors[name] = value
    elif value is None or isinstance(value, (str, int, float)):
        scalars[key or name] = value
    else:
        raise TypeError(
            f"{name}: a {type(value).__name__} in an optimiser's state cannot be saved: neither tensor nor scalar"
        )


def _difference(mine: list[list[str]], theirs: list[list[str]]) -> str:
    own = {name for group in mine for name in group}
    saved = {name for group in theirs for name in group}
    differences = [
        f"only {where}: {', '.join(sorted(names)[:3])}{' …' if len(names) > 3 else ''}"
        for where, names in (("in this model", own - saved), ("in the checkpoint", saved - own))
        if names
    ]
    return "; ".join(differences) or "the same names in other groups or another order"
