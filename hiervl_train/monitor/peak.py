"""The peak speed of a device, the denominator of the utilisation (MFU): configured, from data sheets, or measured."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch

# Dense matrix-product peaks in TFLOP/s, bfloat16 with float32 accumulation, from NVIDIA's data sheets (whose headline
# figures are the doubled ones for sparse weights). Volta and Turing have no bfloat16: theirs are float16. The first
# entry all of whose words are in the device's name counts, so variants precede the general name.
PEAK_TFLOPS: tuple[tuple[tuple[str, ...], float], ...] = (
    (("B200",), 2250.0),
    (("H100", "PCIe"), 756.0),
    (("H100", "NVL"), 835.0),
    (("H200", "NVL"), 835.0),
    (("H200",), 989.0),  # also GH200
    (("H100",), 989.0),  # SXM: "NVIDIA H100 80GB HBM3"
    (("H800",), 989.0),
    (("A100",), 312.0),
    (("A800",), 312.0),
    (("A40",), 149.7),
    (("A30",), 165.0),
    (("A10G",), 70.0),
    (("A10",), 125.0),
    (("L40S",), 362.0),
    (("L40",), 181.0),
    (("L4",), 121.0),
    (("RTX A6000",), 154.8),
    (("V100",), 125.0),
    (("T4",), 65.0),
)


@dataclass(frozen=True, kw_only=True)
class Peak:
    """The peak speed of one device, and the source of that figure."""

    flops: float  # operations a second
    source: str

    def __str__(self) -> str:
        return f"{self.flops / 1e12:.4g} TFLOP/s a device: {self.source}"


def peak(device: torch.device | str, peak_tflops: float | None) -> Peak:
    """Return the denominator of `mfu` on a device: `peak_tflops`, else its data sheet's, else a measured one.

    A run's environment.json has the text of the result as `mfu_denominator`.
    """
    device = torch.device(device)
    if peak_tflops is not None:
        return Peak(flops=peak_tflops * 1e12, source="metrics.peak_tflops")
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        tflops = peak_tflops_of(name)
        if tflops is not None:
            type_name = "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float16"
            return Peak(flops=tflops * 1e12, source=f"dense {type_name} peak of {name} by its data sheet")
    return measure_peak(device)


def peak_tflops_of(device_name: str) -> float | None:
    """Return the data sheet's TFLOP/s by CUDA's device name; None for unknown devices and MIG slices."""
    if "MIG" in device_name:
        return None
    words = device_name.replace("-", " ").split()
    for wanted, tflops in PEAK_TFLOPS:
        if all(any(part in (word, word.removeprefix("G")) for word in words) for part in " ".join(wanted).split()):
            return tflops
    return None


def measure_peak(device: torch.device | str, *, seconds: float = 0.3) -> Peak:
    """Return the speed of the fastest of several square matrix products: bfloat16 on a GPU, float32 on a CPU."""
    device = torch.device(device)
    is_cpu = device.type == "cpu"
    size, dtype = (1024, torch.float32) if is_cpu else (8192, torch.bfloat16)
    a, b = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    best, began = math.inf, None
    while began is None or time.perf_counter() - began < seconds:
        _wait_for(device)
        start = time.perf_counter()
        torch.mm(a, b)
        _wait_for(device)
        if began is None:
            began = time.perf_counter()  # the first product also loads libraries and does not count
            continue
        best = min(best, time.perf_counter() - start)
    name = f"{torch.get_num_threads()} CPU threads" if is_cpu else torch.cuda.get_device_name(device)
    type_name = str(dtype).removeprefix("torch.")
    return Peak(flops=2 * size**3 / best, source=f"measured, {type_name} product of {size} × {size} matrices on {name}")


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
