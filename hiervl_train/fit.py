"""Chooses how many clips, or summaries, a rank encodes at a time: the most that fit into its device's memory, measured.

The whole share is tried first, then halves, thirds and so on. On a GPU a try is a real encoding with its backward pass,
whose peak is read; what the run allocates later (moments, buckets) is added. On a CPU, which has no limit unless
`speed.memory_gib` sets one, the bytes that autograd keeps for one and two rows are counted and extrapolated.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from hiervl_train.collectives import all_true
from hiervl_train.distributed import DistributedContext
from hiervl_train.random_states import RandomStates

GIB = 2**30
_USED = 0.92  # of a GPU's memory at most: fragments and libraries need the rest
Size = int | None | Literal["auto"]
logger = logging.getLogger(__name__)


class FitError(RuntimeError):
    """Not even one row fits into memory; the message says what to set."""

    exit_code: ClassVar[int] = 2


@dataclass(kw_only=True)
class MicroBatches:
    """How many rows of its share a rank encodes at a time, by step type; `fit` replaces what is `auto`."""

    share: Mapping[str, int]  # rows of this rank in a step
    size: dict[str, Size]  # rows at a time; None: the whole share
    # Encodes so many made-up rows of a step type with their graph, and goes back through it.
    probe: Callable[[str, int], None]

    def of(self, step_type: str) -> int | None:
        """Return the rows at a time of a step type, the whole share where nothing was measured."""
        size = self.size[step_type]
        return None if size == "auto" else size

    def counters(self) -> dict[str, int]:
        """Return what a checkpoint keeps: sizes and shares, so that a resumed run need not measure again."""
        kept: dict[str, int] = {}
        for step_type, share in self.share.items():
            kept |= {f"micro_batch/{step_type}": self.of(step_type) or share, f"share/{step_type}": share}
        return kept

    def resume(self, counters: Mapping[str, object]) -> None:
        """Take the measured sizes of a checkpoint, so that dropout draws the same masks, if the shares are the same."""
        for step_type, share in self.share.items():
            size = counters.get(f"micro_batch/{step_type}")
            if self.size[step_type] == "auto" and counters.get(f"share/{step_type}") == share and type(size) is int:
                self.size[step_type] = size


def fit(
    micro_batches: MicroBatches,
    model: nn.Module,
    context: DistributedContext,
    *,
    later_bytes: int,
    memory_gib: float | None,
) -> None:
    """Replace each `auto` by the most rows that fit on every rank; random states and gradients stay as they are.

    `later_bytes` is what the run will allocate on the device besides. Raises `FitError`.
    """
    for step_type in [name for name, size in micro_batches.size.items() if size == "auto"]:
        share = micro_batches.share[step_type]
        limit = _limit(context.device, memory_gib)
        if limit is None:
            micro_batches.size[step_type] = share
            continue
        states = RandomStates.take()
        needs = _needs_on_gpu if context.device.type == "cuda" else _needs_by_counting
        for rows in _candidates(share):
            needed = needs(model, lambda rows: micro_batches.probe(step_type, rows), rows)  # noqa: B023  called at once
            fits = needed is not None and needed + later_bytes <= limit
            if all_true(fits, context.control):
                break
        else:
            raise FitError(
                f"one row of a {step_type} step needs more than {limit / GIB:.3g} GiB: set "
                "speed.checkpoint_activations=true, or use smaller frames or fewer of them"
            )
        states.restore()
        micro_batches.size[step_type] = rows
        logger.info("%s steps encode %d of %d rows at a time", step_type, rows, share)


def _candidates(share: int) -> Iterator[int]:
    """Yield the rows of a micro-batch if a share is divided evenly into 1, 2, 3, … of them, from the largest on."""
    last = None
    for parts in range(1, share + 1):
        rows = -(-share // parts)
        if rows != last:
            yield rows
        last = rows


def _limit(device: torch.device, memory_gib: float | None) -> float | None:
    """Return the bytes that this process may use; None for no limit."""
    if memory_gib is not None:
        return memory_gib * GIB
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return _USED * (free + torch.cuda.memory_reserved(device))


def _needs_on_gpu(model: nn.Module, probe: Callable[[int], None], rows: int) -> int | None:
    """Return the peak of a try in bytes, everything allocated before included; None where it ran out of memory."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        probe(rows)
        return torch.cuda.max_memory_allocated()
    except torch.cuda.OutOfMemoryError:
        return None
    finally:
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()


def _needs_by_counting(model: nn.Module, probe: Callable[[int], None], rows: int) -> int:
    """Return weights, gradients, and what autograd keeps for so many rows, in bytes, from tries of one and two rows."""
    one, two = (_kept(model, probe, count) for count in (1, 2))
    parameters = sum(parameter.nbytes for parameter in model.parameters())
    return 2 * parameters + one + (rows - 1) * max(two - one, 0)


def _kept(model: nn.Module, probe: Callable[[int], None], rows: int) -> int:
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        probe(rows)
    model.zero_grad(set_to_none=True)
    return sum(kept.values())
