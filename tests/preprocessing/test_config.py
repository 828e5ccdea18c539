"""The configuration of a build refuses values out of range."""

from __future__ import annotations

import pytest

from configs.loading import ConfigError, load
from preprocessing.config import BuildConfig


@pytest.mark.parametrize("name", ["max_samples", "max_bytes", "nominal_kbps"])
def test_bounds_below_one_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"shard\.{name} = 0: .*greater than 0"):
        load(BuildConfig, None, [f"shard.{name}=0"])


def test_a_walltime_that_slurm_would_not_read_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"walltime = '12h': expected minutes, .*hours:minutes:seconds"):
        load(BuildConfig, None, ["dask.slurm.walltime=12h"])
    assert load(BuildConfig, None, ["dask.slurm.walltime=2-12:00:00"]).dask.slurm.walltime == "2-12:00:00"
    assert load(BuildConfig, None, ["dask.slurm.walltime=90"]).dask.slurm.walltime == "90"
