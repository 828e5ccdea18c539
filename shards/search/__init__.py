"""Finds samples of a dataset: by key, by words in their captions, and by the similarity of their vectors."""
