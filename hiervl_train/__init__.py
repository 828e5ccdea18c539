"""Distributed contrastive pretraining and fine-tuning of HierVL from shards."""
