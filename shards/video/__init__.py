"""Decodes stored clips: the packets of an mp4, and frames at training size."""
