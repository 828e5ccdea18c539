"""Turns hierarchies of other datasets into tables of captions, which the build of own videos reads."""
