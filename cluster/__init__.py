"""Batch scripts and launchers for SLURM clusters."""
