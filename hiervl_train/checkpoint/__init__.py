"""Checkpoints of a run: their state and files, how they are written and verified, how runs resume and open them."""
