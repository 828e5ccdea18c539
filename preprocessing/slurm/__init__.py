"""Dask workers as SLURM jobs: when they leave, and how their jobs are replaced."""
