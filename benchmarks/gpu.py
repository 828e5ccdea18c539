"""Measures training steps on a GPU, one row per change: a single command for a machine with torch, timm, transformers.

    python benchmarks/gpu.py                                  every row at the published size, about ten minutes
    python benchmarks/gpu.py --rows divided joint --clips 32
    torchrun --nproc-per-node 8 benchmarks/gpu.py --rows after overlapped bf16_gradients sharded

Prints a table and the same figures as JSON, with the GPU's name and the date. Data is made up on the device. Neither
PyAV nor webdataset, pydantic or any other package of the project is needed: what is missing is replaced by inert
stand-ins, as nothing here uses it. Without a GPU it runs on the CPU, for tests (`--size tiny`).
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import statistics
import sys
import time
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

sys.path[0] = str(Path(__file__).resolve().parent.parent)
# Packages of the project's that a bare machine may lack; the imports below reach them, the measurements do not.
OPTIONAL = (
    *("av", "pydantic", "rich", "argcomplete", "pyarrow", "webdataset", "fsspec", "simplejpeg", "bokeh", "PIL"),
    *("tensorboard", "yaml", "wandb", "pandas"),
)


class _Anything:
    """Stands for whatever a missing package has: can be called, subscripted, derived from, and does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        """Take anything."""

    def __call__(self, *_: Any, **__: Any) -> Any:
        return _Anything()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything()

    def __getitem__(self, _: Any) -> Any:
        return _Anything()

    def __or__(self, _: Any) -> Any:
        return _Anything()

    __ror__ = __or__

    def __mro_entries__(self, _: Any) -> tuple[type, ...]:
        return (Exception,)  # what is derived from a missing class is an error, or is not used


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives a module of `_Anything` for each optional package that is not installed; comes after all real finders."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """Return a spec for a missing optional package or a part of it."""
        if name.split(".")[0] not in OPTIONAL:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """Return a module that has every attribute."""
        module = types.ModuleType(spec.name)
        module.__getattr__ = _Anything().__getattr__  # type: ignore[method-assign]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Leave the module as it is."""


sys.meta_path.append(_StandIns())

from hiervl_train import fit, losses  # noqa: E402
from hiervl_train.collectives import all_gather  # noqa: E402
from hiervl_train.distributed import DistributedContext  # noqa: E402
from hiervl_train.grad_cache import cached_backward  # noqa: E402
from hiervl_train.models import AggregatorConfig, HierVL, ModelConfig, TextConfig, flops  # noqa: E402
from hiervl_train.models.layers import DividedAttention, attend  # noqa: E402
from hiervl_train.models.pixels import normalise  # noqa: E402
from hiervl_train.models.speed import SpeedConfig, autocast, prepare  # noqa: E402
from hiervl_train.optim import OptimConfig, build_optimizer, update  # noqa: E402
from hiervl_train.reduction.reducer import GradientReducer  # noqa: E402
from hiervl_train.transfer import Readback  # noqa: E402

TOKENS, FRAMES = 16, 4
TINY = ModelConfig(
    img_size=32,
    patch_size=16,
    embed_dim=32,
    depth=2,
    num_heads=2,
    projection_dim=16,
    text=TextConfig(vocab_size=64, max_position_embeddings=32, n_layers=1, n_heads=2, dim=32, hidden_dim=64),
    aggregator=AggregatorConfig(depth=1, num_heads=2, drop_path=0.0),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way to train."""

    what: str
    speed: SpeedConfig = field(default_factory=lambda: SpeedConfig(bf16=True, compile=True))
    model: dict[str, Any] = field(default_factory=dict)
    parts: int = 1  # micro-batches of the rank's share
    concatenates: bool = False  # keys and values are regrouped and concatenated with CLS, as before
    waits: bool = False  # reads the loss of each step at once
    overlap: bool = True
    bf16_gradients: bool = False
    shard_states: bool = False


_COMPILED = SpeedConfig(bf16=True, compile=True)
_HALF = {"attention": "joint", "patch_dropout": 0.5}
ROWS = {
    "eager": Row(what="divided attention, blocks not compiled", speed=replace(_COMPILED, compile=False)),
    "concatenated": Row(what="divided, keys and values copied in every block (before)", concatenates=True),
    "divided": Row(what="divided, CLS apart"),
    "pairwise": Row(what="divided, time attention without mask", speed=replace(_COMPILED, pairwise_time=True)),
    "bf16_residual": Row(what="divided, bfloat16 residual stream", speed=replace(_COMPILED, bf16_residual=True)),
    "channels_last": Row(what="divided, channels-last", speed=replace(_COMPILED, channels_last=True)),
    "checkpointed": Row(what="divided, activations recomputed", speed=replace(_COMPILED, checkpoint_activations=True)),
    "waiting": Row(what="divided, the loss read at every step (before)", waits=True),
    "two_parts": Row(what="divided, 2 micro-batches", parts=2),
    "four_parts": Row(what="divided, 4 micro-batches", parts=4),
    "joint": Row(what="joint attention", model={"attention": "joint"}),
    "joint_half": Row(what="joint, half the patches", model=_HALF),
    "joint_half_residual": Row(
        what="joint, half the patches, bfloat16 residual stream",
        model=_HALF,
        speed=replace(_COMPILED, bf16_residual=True),
    ),
    # These differ only between several ranks.
    "after": Row(what="divided, averaging after the backward pass (before)", overlap=False),
    "overlapped": Row(what="divided, averaging during the backward pass"),
    "bf16_gradients": Row(what="divided, averaging in bfloat16", bf16_gradients=True),
    "sharded": Row(what="divided, moments divided over ranks", shard_states=True),
}
OF_RANKS = ("after", "overlapped", "bf16_gradients", "sharded")


class Concatenated(DividedAttention):
    """Divided attention as it was: queries, keys and values are regrouped, and CLS is concatenated to the last two."""

    def forward(self, cls_B1D: Tensor, patches_BPD: Tensor, frames: int, masks: Any) -> tuple[Tensor, Tensor]:
        """See `DividedAttention.forward`."""
        batch, x_BSD = cls_B1D.shape[0], torch.cat([cls_B1D, patches_BPD], dim=1)
        q, k, v = self.qkv(x_BSD).unflatten(-1, (3, self.heads, -1)).unbind(2)
        cls = attend(q[:, :1], k, v)
        groups = [self.group(x[:, 1:].flatten(2), frames) for x in (q, k, v)]
        count = groups[0].shape[1]

        def joined(x: Tensor, grouped: Tensor) -> Tensor:
            own = x[:, :1].flatten(2)[:, None].expand(-1, count, -1, -1)
            return torch.cat([own, grouped], dim=2).flatten(0, 1).unflatten(-1, (self.heads, -1))

        queries = groups[0].flatten(0, 1).unflatten(-1, (self.heads, -1))
        out = attend(queries, joined(k, groups[1]), joined(v, groups[2]), masks.patches_LK)
        patches = self.ungroup(self.proj(out.flatten(2)).unflatten(0, (batch, -1)), frames)
        return self.proj(cls.flatten(2)), patches


def use_concatenation(model: HierVL) -> None:
    """Give the attentions of a divided tower the former computation, with their weights."""
    for module in model.modules():
        if isinstance(module, DividedAttention):
            former = type(f"Former{type(module).__name__}", (Concatenated, type(module)), {})
            former.forward = Concatenated.forward  # type: ignore[method-assign]
            module.__class__ = former


class Training:
    """A model with made-up batches on a device, and its training step."""

    def __init__(self, row: Row, size: str, clips: int, device: torch.device) -> None:
        base = ModelConfig() if size == "published" else TINY
        self.row, self.config, self.device, self.clips = row, replace(base, **row.model), device, clips
        torch.manual_seed(0)
        self.model = HierVL(self.config)
        if row.concatenates:
            use_concatenation(self.model)
        self.model = prepare(self.model.to(device), row.speed).train()
        self.optim = OptimConfig(shard_states=row.shard_states)
        self.parameters = list(self.model.parameters())
        self.optimizer = build_optimizer(self.parameters, self.optim)
        self.reducer = GradientReducer(
            dict(self.model.named_parameters()), overlap=row.overlap, bf16=row.bf16_gradients
        )
        height, width = self.config.image_hw
        self.video = torch.randint(0, 256, (clips, FRAMES, 3, height, width), dtype=torch.uint8, device=device)
        self.ids = torch.randint(0, self.config.text.vocab_size, (clips, TOKENS), device=device)
        self.mask = torch.ones_like(self.ids)
        self.tags = [(torch.rand(clips, count, device=device) < 0.02).float() for count in (118, 582)]
        self.last: Readback | None = None

    def encode(self, rows: slice) -> tuple[Tensor, ...]:
        """Return the embeddings of clips and their texts."""
        with autocast(self.device, self.row.speed):
            out = self.model(normalise(self.video[rows]), self.ids[rows], self.mask[rows])
        return tuple(x.float() for x in out)

    def loss(self, video_BD: Tensor, text_BD: Tensor) -> Tensor:
        """Return EgoNCE over all ranks."""
        positives = losses.tag_positives(*(all_gather(tags) for tags in self.tags))
        return losses.egonce(losses.similarity(all_gather(text_BD), all_gather(video_BD)), positives, temperature=0.05)

    def step(self) -> None:
        """Take a training step, as the trainer's loop does."""
        self.optimizer.zero_grad(set_to_none=True)
        self.reducer.begin("child")
        size = -(-self.clips // self.row.parts)
        slices = [slice(start, start + size) for start in range(0, self.clips, size)]
        value = cached_backward(slices, self.encode, self.loss, _Scope(self.reducer))
        self.reducer.finish()
        norm = update(self.optimizer, self.parameters, self.optim, 1e-5)
        if self.row.waits:
            float(value)
        else:
            following = Readback([value, norm])
            if self.last is not None:
                self.last.values()
            self.last = following

    def close(self) -> None:
        """Remove the hooks."""
        self.reducer.close()


class _Scope:
    def __init__(self, reducer: GradientReducer) -> None:
        self.last_backward = reducer.last_backward

    def phase(self, name: str) -> None:
        """Nothing is timed by phase."""


def now(device: torch.device) -> float:
    """Return the time in s when all work of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(name: str, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Return the figures of a row; of one that fails, its error."""
    row = ROWS[name]
    if device.type == "cpu" and row.speed.compile and not options.compile_on_cpu:
        row = replace(row, speed=replace(row.speed, compile=False))
    torch._dynamo.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        training = Training(row, options.size, options.clips, device)
        began = now(device)
        for _ in range(options.warmup):
            training.step()
        warmed = now(device)
        times = []
        for _ in range(options.repeats):
            start = now(device)
            for _ in range(options.steps):
                training.step()
            times.append((now(device) - start) / options.steps)
        seconds = statistics.median(times)
        operations = flops.clip(training.config, frames=FRAMES, text_tokens=TOKENS, training=True).train * options.clips
        waits = _waits(training) if device.type == "cuda" else None
        training.close()
    except torch.cuda.OutOfMemoryError as error:
        return {"row": name, "what": row.what, "error": f"out of memory: {error}".splitlines()[0]}
    return {
        "row": name,
        "what": row.what,
        "step_ms": round(1000 * seconds, 2),
        "clips_per_s": round(options.clips / seconds, 1),
        "tflops": round(operations / seconds / 1e12, 2),
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if device.type == "cuda" else None,
        "warmup_s": round(warmed - began, 1),
        "waits": waits,
    }


def _waits(training: Training) -> bool:
    """Return whether a step waits for the device, by torch's own check."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        training.step()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False


def fitting(options: argparse.Namespace, device: torch.device) -> dict[str, Any] | None:
    """Return how many of 512 clips fit into a pass by the trainer's own measurement; None on a CPU."""
    if device.type != "cuda":
        return None
    training = Training(ROWS["eager"], options.size, 1, device)

    def probe(_: str, rows: int) -> None:
        height, width = training.config.image_hw
        video = torch.zeros(rows, FRAMES, 3, height, width, dtype=torch.uint8, device=device)
        ids = torch.zeros(rows, 64, dtype=torch.long, device=device)
        with autocast(device, training.row.speed):
            out = training.model(normalise(video), ids, torch.ones_like(ids))
        torch.autograd.backward(out, [torch.ones_like(x) for x in out])

    sizes = fit.MicroBatches(share={"child": 512}, size={"child": "auto"}, probe=probe)
    later = 2 * sum(p.nbytes for p in training.parameters)
    fit.fit(sizes, training.model, DistributedContext(device=device), later_bytes=later, memory_gib=None)
    training.close()
    return {"clips_in_a_pass": sizes.of("child"), "eager": True}


def matmul_tflops(device: torch.device) -> float:
    """Return the rate of a large matrix product in bfloat16, the best of five."""
    side = 8192 if device.type == "cuda" else 512
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    best = float("inf")
    for _ in range(5):
        start = now(device)
        for _ in range(5):
            a @ a
        best = min(best, (now(device) - start) / 5)
    return 2 * side**3 / best / 1e12


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the figures as text; speed and memory relative to the first row that did not fail."""
    lines = [f"{'row':22}{'step ms':>10}{'clips/s':>10}{'TFLOP/s':>9}{'peak GB':>9}{'speed':>8}  what"]
    first = next((row for row in rows if "error" not in row), None)
    for row in rows:
        if "error" in row or first is None:
            lines.append(f"{row['row']:22}  {row['error']}")
            continue
        faster = first["step_ms"] / row["step_ms"] if row["step_ms"] else 0.0
        peak = "–" if row["peak_gb"] is None else row["peak_gb"]
        waits = ", WAITS" if row["waits"] else ""
        lines.append(
            f"{row['row']:22}{row['step_ms']:>10}{row['clips_per_s']:>10}{row['tflops']:>9}{peak:>9}{faster:>7.2f}×"
            f"  {row['what']}{waits}"
        )
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    is_several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    default = list(OF_RANKS) if is_several else [name for name in ROWS if name not in OF_RANKS]
    parser.add_argument("--rows", nargs="+", default=default, choices=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--size", default="published", choices=["published", "tiny"])
    parser.add_argument("--clips", type=int, default=64, help="clips of a rank in a step")
    parser.add_argument("--steps", type=int, default=5, help="steps of a repetition")
    parser.add_argument("--repeats", type=int, default=3, help="repetitions, of which the median counts")
    parser.add_argument("--warmup", type=int, default=3, help="steps before, in which blocks are compiled")
    parser.add_argument("--compile-on-cpu", action="store_true", help="compile blocks without a GPU, too")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    return parser.parse_args(arguments)


@contextlib.contextmanager
def ranks() -> Iterator[torch.device]:
    """Join torchrun's ranks, if there are several; yield this rank's device."""
    is_cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if is_cuda else torch.device("cpu")
    if is_cuda:
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    dist.init_process_group("nccl" if is_cuda else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all rows, print the table and the JSON; return 1 if a row failed."""
    options = parse(arguments)
    with ranks() as device:
        is_first = not dist.is_initialized() or dist.get_rank() == 0
        about = {
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
            "ranks": dist.get_world_size() if dist.is_initialized() else 1,
            "torch": torch.__version__,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "size": options.size,
            "clips": options.clips,
            "matmul_tflops": round(matmul_tflops(device), 2),
        }
        rows = []
        for name in options.rows:
            rows.append(measure(name, options, device))
            if is_first:  # at once, so that an interrupted run has what it measured
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        fits = fitting(options, device) if about["ranks"] == 1 else None
    if is_first:
        result = json.dumps({"about": about, "fit": fits, "rows": rows}, indent=1)
        print(f"{about}\n{table(rows)}\n{result}")
        if options.out:
            options.out.write_text(result + "\n", encoding="utf-8")
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
