"""The states of the random generators of a process: taken, restored, and stored as tensors."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class RandomStates:
    """The states of all generators that a rank uses: torch's on the CPU and the current GPU, Python's, numpy's."""

    cpu: Tensor
    cuda: Tensor | None  # None where no GPU was in use
    python: tuple[Any, ...]
    numpy: tuple[Any, ...]

    @classmethod
    def take(cls) -> RandomStates:
        """Return the current states."""
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
        """Return states derived from (seed, step, rank), for a rank that has no saved ones."""
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
        """Return the states as tensors, so that reading them back unpickles nothing."""
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
        """Return the states that `tensors` returned."""
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
