"""Numbered rows of embeddings: the unit that is computed, cached, joined and gathered over ranks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from hiervl_train.distributed import DistributedContext

BatchRange = tuple[int, int]  # half-open


@dataclass(frozen=True, kw_only=True, eq=False)
class EmbeddedRows:
    """Some rows of an input list: the embeddings of those that succeeded and why the others failed."""

    rows: np.ndarray  # int64, ascending: the rows that have an embedding
    values: np.ndarray  # float32, one entry per row
    failed: Mapping[int, str]  # row → reason
    covered: tuple[BatchRange, ...] = ()  # the batches that these rows are of

    @property
    def samples(self) -> int:
        """The number of rows, failed ones included."""
        return len(self.rows) + len(self.failed)


def join_rows(parts: Sequence[EmbeddedRows], shape: tuple[int, ...]) -> EmbeddedRows:
    """Return several parts as one, sorted by row; of a row that occurs twice one is kept. `shape` is one entry's."""
    rows = np.concatenate([np.empty(0, np.int64), *(part.rows for part in parts)])
    values = np.concatenate([np.empty((0, *shape), np.float32), *(part.values for part in parts)])
    rows, first = np.unique(rows, return_index=True)
    failed = {row: reason for part in parts for row, reason in part.failed.items()}
    return EmbeddedRows(rows=rows, values=values[first], failed=failed)


def gather_rows(own: EmbeddedRows, ranks: DistributedContext) -> EmbeddedRows | None:
    """Return the rows of all ranks on the first one, None on the others; ranks may have different numbers of rows."""
    if ranks.world == 1:
        return own
    failed = np.frombuffer(json.dumps({str(row): reason for row, reason in own.failed.items()}).encode(), np.uint8)
    tensors = [torch.from_numpy(array.copy()) for array in (own.rows, own.values, failed)]
    sizes_W2 = [torch.zeros(2, dtype=torch.int64) for _ in range(ranks.world)]
    dist.all_gather(sizes_W2, torch.tensor([len(own.rows), len(failed)]), group=ranks.control)
    if not ranks.is_main:
        for tensor in tensors:
            if tensor.numel():
                dist.send(tensor, 0, group=ranks.control)
        return None
    parts = [own]
    for rank in range(1, ranks.world):
        rows, json_bytes = sizes_W2[rank].tolist()
        received = [
            torch.empty(rows, dtype=torch.int64),
            torch.empty((rows, *own.values.shape[1:]), dtype=torch.float32),
            torch.empty(json_bytes, dtype=torch.uint8),
        ]
        for tensor in received:
            if tensor.numel():
                dist.recv(tensor, rank, group=ranks.control)
        reasons = json.loads(received[2].numpy().tobytes())
        failures = {int(row): str(reason) for row, reason in reasons.items()}
        parts.append(EmbeddedRows(rows=received[0].numpy(), values=received[1].numpy(), failed=failures))
    return join_rows(parts, own.values.shape[1:])
