"""Measuring a model: Pass@k and tool use with intervals, and the Thinking-Acting Gap's diagnostics.

Everything is a pure function over lists of `Group`, however those were sampled; `driver` samples
them, and can be killed and started again.
"""
