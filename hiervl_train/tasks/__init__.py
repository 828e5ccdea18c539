"""The tasks that the training loop runs: pretraining, and fine-tuning with a module per task."""
