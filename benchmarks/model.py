"""Compares training-step time and peak memory of our model and the published attention with bare matrix products.

    python benchmarks/model.py                     the published size on this machine's device
    python benchmarks/model.py --size small        the size of configs/pretrain/small.yaml, for a laptop
    python benchmarks/model.py --cases published_fp32 ours_bf16_compiled --batches 16 32 64

Prints a table and the same figures as JSON. A training step runs both towers on a batch of clips and texts, EgoNCE,
backward and AdamW. Each case has a process of its own, so that memory is not shared. The lower bound of the time is
that of the same operations as bare matrix products of the model's shapes, measured in the same process before and
after. Operations are counted by the published arithmetic (`hiervl_train.models.flops`) for all cases.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from configs import loading
from hiervl_train.config import PretrainConfig
from hiervl_train.models import HierVL, ModelConfig, flops
from hiervl_train.models.layers import BlockMasks, DividedAttention, SpaceAttention, TimeAttention
from hiervl_train.models.speed import SpeedConfig, autocast, prepare
from hiervl_train.models.video import SpaceTimeBlock
from hiervl_train.objectives import ObjectiveConfig, Tags, child_loss
from hiervl_train.optim import OptimConfig, build_optimizer

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way to run the model."""

    published: bool = False  # published attention: materialised scores, all tokens through all blocks
    speed: SpeedConfig


def speed(*, bf16: bool = False, compiled: bool = False, checkpoint: bool = False, last: bool = False) -> SpeedConfig:
    """Return the section `speed` of a case."""
    return SpeedConfig(bf16=bf16, compile=compiled, checkpoint_activations=checkpoint, channels_last=last)


CASES = {
    "published_fp32": Case(published=True, speed=speed()),
    "published_bf16": Case(published=True, speed=speed(bf16=True)),
    "ours_fp32": Case(speed=speed()),
    "ours_fp32_compiled": Case(speed=speed(compiled=True)),
    "ours_bf16": Case(speed=speed(bf16=True)),
    "ours_bf16_compiled": Case(speed=speed(bf16=True, compiled=True)),
    "ours_bf16_compiled_channels_last": Case(speed=speed(bf16=True, compiled=True, last=True)),
    "ours_bf16_compiled_checkpointed": Case(speed=speed(bf16=True, compiled=True, checkpoint=True)),
}


class PublishedAttention(nn.Module):
    """Divided attention as computed by the released code, with the weights of ours."""

    def __init__(self, ours: DividedAttention) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = ours.heads, ours.qkv, ours.proj
        self.over_time = isinstance(ours, TimeAttention)

    def forward(self, x: Tensor, frames: int, mask: Tensor | None = None) -> Tensor:
        batch, tokens, width = x.shape
        patches = (tokens - 1) // frames
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2).reshape(batch * self.heads, tokens, -1)
            for part in self.qkv(x).chunk(3, dim=-1)
        )
        q = q * (width // self.heads) ** -0.5
        cls = scores_and_all(q[:, :1], k, v)
        q_groups, k_groups, v_groups = (self._regroup(part[:, 1:], frames, patches) for part in (q, k, v))
        repeats = q_groups.shape[0] // q.shape[0]
        keys = torch.cat([k[:, :1].repeat_interleave(repeats, 0), k_groups], dim=1)
        values = torch.cat([v[:, :1].repeat_interleave(repeats, 0), v_groups], dim=1)
        out = self._back(scores_and_all(q_groups, keys, values), q.shape[0], frames, patches)
        out = torch.cat([cls, out], dim=1).unflatten(0, (batch, self.heads)).transpose(1, 2).flatten(2)
        return self.proj(out)

    def _regroup(self, x: Tensor, frames: int, patches: int) -> Tensor:
        grid = x.unflatten(1, (frames, patches))
        return (grid.transpose(1, 2) if self.over_time else grid).flatten(0, 1)

    def _back(self, x: Tensor, rows: int, frames: int, patches: int) -> Tensor:
        grid = x.unflatten(0, (rows, -1))
        return (grid.transpose(1, 2) if self.over_time else grid).flatten(1, 2)


def scores_and_all(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return the attention of scaled queries, computed with the complete score matrix."""
    return torch.einsum("bij,bjd->bid", torch.einsum("bid,bjd->bij", q, k).softmax(dim=-1), v)


class PublishedBlock(SpaceTimeBlock):
    """A block that computes all tokens, as published, even those that nothing uses."""

    def forward(
        self, cls_B1D: Tensor, patches_BPD: Tensor, frames: int, masks: BlockMasks, cls_only: bool
    ) -> tuple[Tensor, Tensor]:
        x_BSD = torch.cat([cls_B1D, patches_BPD], dim=1)
        timed_BSD = self.norm1(x_BSD + self.timeattn(self.norm3(x_BSD), frames))
        x_BSD = x_BSD + self.attn(timed_BSD, frames)
        x_BSD = x_BSD + self.mlp(self.norm2(x_BSD))
        return x_BSD[:, :1], x_BSD[:, 1:]


def as_published(model: HierVL) -> HierVL:
    """Replace the attention of the video tower's blocks in place, keeping the weights."""
    for block in model.video.blocks:
        assert isinstance(block, SpaceTimeBlock)
        assert isinstance(block.attn, SpaceAttention) and isinstance(block.timeattn, TimeAttention)
        block.attn = PublishedAttention(block.attn)  # type: ignore[assignment]
        block.timeattn = PublishedAttention(block.timeattn)  # type: ignore[assignment]
        block.__class__ = PublishedBlock
    return model


def model_config(size: str) -> ModelConfig:
    """Return the published model configuration, or that of `configs/pretrain/<size>.yaml`."""
    if size == "published":
        return ModelConfig()
    return loading.load(PretrainConfig, ROOT / "configs" / "pretrain" / f"{size}.yaml").model


def train_step(
    config: ModelConfig, case: Case, device: str, batch: int, frames: int, tokens: int
) -> Callable[[], None]:
    """Return a function that runs one training step on a random batch."""
    torch.manual_seed(0)
    model = HierVL(config)
    model = prepare(as_published(model) if case.published else model, case.speed).to(device).train()
    optimizer = build_optimizer(model.parameters(), OptimConfig())
    video = torch.randn(batch, frames, 3, *config.image_hw, device=device)
    ids = torch.randint(0, config.text.vocab_size, (batch, tokens), device=device)
    mask = torch.ones_like(ids)
    tags = Tags(
        verbs_BV=torch.randint(0, 2, (batch, 118), device=device),
        nouns_BO=torch.randint(0, 2, (batch, 582), device=device),
    )

    def step() -> None:
        with autocast(device, case.speed):
            embeddings = model(video, ids, mask)
        child_loss(*embeddings, tags, ObjectiveConfig()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def matmul_rate(config: ModelConfig, device: str, rows: int, *, bf16: bool) -> float:
    """Return the operations/s of bare matrix products of the MLP's shape, the best of four runs."""
    kind = torch.bfloat16 if bf16 else torch.float32
    a = torch.randn(rows, config.embed_dim, device=device, dtype=kind)
    b = torch.randn(config.embed_dim, 4 * config.embed_dim, device=device, dtype=kind)
    operations = 2 * rows * config.embed_dim * 4 * config.embed_dim
    repeats = max(3, int(2e11 / operations)) if device == "cpu" else max(20, int(2e14 / operations))
    times = []
    for _ in range(4):
        start = now(device)
        for _ in range(repeats):
            a @ b
        times.append(now(device) - start)
    return operations * repeats / min(times)


def now(device: str) -> float:
    """Return the time in s after all work of the device is done.

    On a CPU it is the process's CPU time per thread, so that other load on the machine does not count.
    """
    if device == "cpu":
        return time.process_time() / torch.get_num_threads()
    torch.cuda.synchronize()
    return time.perf_counter()


def forget_peak(device: str) -> None:
    """Reset the measurement of peak memory."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError):  # if the kernel does not allow it, the peak is that of the process's lifetime
        Path("/proc/self/clear_refs").write_text("5")


def peak_gb(device: str) -> float:
    """Return the peak since `forget_peak` in GB: of allocated GPU memory, or of the process's resident memory."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 1e9
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def measure(options: argparse.Namespace, name: str, batch: int) -> dict[str, object]:
    """Measure one case in this process; return its figures."""
    torch.set_num_threads(options.threads)
    if options.device != "cpu":
        torch.set_float32_matmul_precision("high")
    case, config = CASES[name], model_config(options.size)
    frames = min(options.frames, config.num_frames)
    rows = batch * (1 + frames * config.patches)
    step = train_step(config, case, options.device, batch, frames, options.tokens)
    for _ in range(options.warmup):
        step()
    rates = [matmul_rate(config, options.device, rows, bf16=case.speed.bf16)]
    forget_peak(options.device)
    times = []
    for _ in range(options.steps):
        start = now(options.device)
        step()
        times.append(now(options.device) - start)
    memory = peak_gb(options.device)
    rates.append(matmul_rate(config, options.device, rows, bf16=case.speed.bf16))
    seconds = statistics.median(times)
    operations = flops.clip(config, frames=frames, text_tokens=options.tokens)
    executed = flops.clip(config, frames=frames, text_tokens=options.tokens, executed=not case.published)
    floor = statistics.mean(rates)
    return {
        "case": name,
        "batch": batch,
        "step_s": round(seconds, 4),
        "step_s_all": [round(value, 4) for value in times],
        "clips_per_s": round(batch / seconds, 3),
        "peak_memory_gb": round(memory, 2),
        "matmul_tflops": round(floor / 1e12, 3),
        "share_of_matmul_floor": round(operations.train * batch / seconds / floor, 3),
        "executed_share": round(executed.train * batch / seconds / floor, 3),
    }


def in_a_process(arguments: list[str], name: str, batch: int) -> dict[str, object]:
    """Measure one case in a process of its own; the row of a failed case has its error."""
    command = [sys.executable, __file__, *arguments, "--one", name, str(batch)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if run.returncode:
        return {"case": name, "batch": batch, "error": (run.stderr.strip().splitlines() or ["no message"])[-1]}
    return json.loads(run.stdout.strip().splitlines()[-1])


def machine(options: argparse.Namespace) -> dict[str, object]:
    """Return a description of the device, without host names."""
    device = platform.processor() or platform.machine()
    if options.device == "cpu":
        with contextlib.suppress(OSError, StopIteration):
            lines = Path("/proc/cpuinfo").read_text().splitlines()
            device = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    else:
        device = torch.cuda.get_device_name()
    return {
        "device": device,
        "cores": os.cpu_count(),
        "threads": options.threads,
        "load_at_start": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def table(rows: list[dict[str, object]]) -> str:
    """Return the figures as text, with ratios of time and memory to the first case of the same batch size."""
    lines = [
        f"{'case':34}{'batch':>6}{'step s':>10}{'clips/s':>10}{'peak GB':>9}{'of bound':>9}{'speed':>8}{'memory':>8}"
    ]
    first: dict[object, dict[str, object]] = {}
    for row in rows:
        if "error" in row:
            lines.append(f"{row['case']!s:34}{row['batch']!s:>6}  failed: {row['error']}")
            continue
        base = first.setdefault(row["batch"], row)
        faster = float(str(base["step_s"])) / float(str(row["step_s"]))
        smaller = float(str(row["peak_memory_gb"])) / float(str(base["peak_memory_gb"]))
        lines.append(
            f"{row['case']!s:34}{row['batch']!s:>6}{row['step_s']!s:>10}{row['clips_per_s']!s:>10}"
            f"{row['peak_memory_gb']!s:>9}{row['share_of_matmul_floor']!s:>9}{faster:>7.2f}×{smaller:>7.2f}×"
        )
    return "\n".join(lines)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the options; defaults depend on the device."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, choices=["cpu", "cuda"])
    parser.add_argument("--size", default="published", choices=["published", "small"])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES), metavar="CASE")
    parser.add_argument("--batches", nargs="+", type=int, help="clips per step; CPU: 2, GPU: 16, 64, 128")
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=32, help="tokens per text")
    parser.add_argument("--steps", type=int, help="timed steps; CPU: 3, GPU: 20")
    parser.add_argument("--warmup", type=int, help="steps before timing; CPU: 1, GPU: 5")
    parser.add_argument("--threads", type=int, default=1, help="threads on the CPU")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    parser.add_argument("--one", nargs=2, metavar=("CASE", "BATCH"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    gpu = options.device != "cpu"
    options.batches = options.batches or ([16, 64, 128] if gpu else [2])
    options.steps = options.steps or (20 if gpu else 3)
    options.warmup = options.warmup if options.warmup is not None else (5 if gpu else 1)
    return options


def main(arguments: list[str]) -> int:
    """Measure all cases, print the table and the JSON; return 1 if a case failed."""
    options = parse(arguments)
    if options.one:
        print(json.dumps(measure(options, options.one[0], int(options.one[1]))))
        return 0
    about = {
        **machine(options),
        **{key: getattr(options, key) for key in ("size", "frames", "tokens", "steps")},
        "clip_gflop_train": round(
            flops.clip(model_config(options.size), frames=options.frames, text_tokens=options.tokens).train / 1e9, 1
        ),
        "cases": {name: asdict(CASES[name]) for name in options.cases},
    }
    if options.device == "cpu":
        print("without a GPU, times are CPU seconds of the process; the ratios differ on a GPU")
    rows = [in_a_process(arguments, name, batch) for batch in options.batches for name in options.cases]
    print(table(rows))
    result = json.dumps({"about": about, "rows": rows}, indent=1)
    print(result)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(result + "\n", encoding="utf-8")
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
