"""Draws and encodes the frames of the embedded dataset's videos."""
