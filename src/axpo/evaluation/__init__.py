"""Measures a model: Pass@k and tool use with intervals, and the Thinking-Acting Gap's diagnostics.

`run` has the two commands. `driver` samples the groups and can be killed and started again; the
figures are pure functions over lists of `Group`, whoever sampled them.
"""
