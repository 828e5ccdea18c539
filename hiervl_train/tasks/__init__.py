"""Fine-tuning from a checkpoint, on the pretraining's own loop: a module per task, beside what the tasks share."""
