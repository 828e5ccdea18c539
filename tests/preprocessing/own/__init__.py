"""Tests of own videos and their captions."""
