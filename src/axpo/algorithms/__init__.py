"""Algorithms: pure functions on groups, a page each; `base` says what one is."""
