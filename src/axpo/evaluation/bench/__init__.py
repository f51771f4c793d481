"""What `axpo bench` makes of several measurements: one table, beside the paper's.

An *arm* is a way in which a model answers: with tools, without, or another model with tools. Each
benchmark and arm is a measurement as `axpo eval` makes it (`axpo.evaluation.run`) in a folder of
its own. `answers` reads them again without their tokens, `figures` compares the arms of a
benchmark, `paper` holds what the paper says. `axpo.build.bench` makes the measurements,
`axpo.report.bench` shows what came out.
"""

TOOLS, NO_TOOLS, BASE = "tools", "no-tools", "base"
"""The arms: the model with tools, without them, and another model with tools."""
