"""Algorithms are pure functions on groups, one page each; `base` says what one is."""
