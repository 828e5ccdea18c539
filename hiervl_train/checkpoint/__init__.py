"""Checkpoints of a run: what is saved, how it is written and verified, and how a run or a command opens one."""
