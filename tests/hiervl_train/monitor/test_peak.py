"""The peak speed of devices: from the configuration, from data sheets by device name, and measured."""

from __future__ import annotations

import math
import time

import pytest
import torch

from hiervl_train.monitor.peak import measure_peak, peak, peak_tflops_of


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 NVL", 835.0),
        ("NVIDIA H200", 989.0),
        ("NVIDIA GH200 480GB", 989.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", None),
        ("Tesla V100-SXM2-32GB", 125.0),
        ("NVIDIA A10", 125.0),
        ("NVIDIA A10G", 70.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40", 181.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA RTX A6000", 154.8),
        ("NVIDIA RTX 4000 SFF", None),
        ("NVIDIA A4000", None),
    ],
)
def test_data_sheet_peaks_are_found_by_device_name(name: str, tflops: float | None) -> None:
    assert peak_tflops_of(name) == tflops


def test_a_peak_names_its_source() -> None:
    configured = peak("cpu", 12.5)
    assert configured.flops == 12.5e12 and str(configured) == "12.5 TFLOP/s a device: metrics.peak_tflops"
    assert "measured, float32 product" in str(peak("cpu", None))


def test_a_measured_peak_is_the_speed_of_a_matrix_product() -> None:
    a = torch.ones(1024, 1024)
    measured = measure_peak("cpu", seconds=0.5).flops
    fastest, until = math.inf, time.perf_counter() + 0.5
    while time.perf_counter() < until:
        start = time.perf_counter()
        a @ a
        fastest = min(fastest, time.perf_counter() - start)
    assert 0.25 < 2 * 1024**3 / fastest / measured < 4  # other processes take time from either
