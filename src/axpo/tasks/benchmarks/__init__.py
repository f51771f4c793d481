"""Public benchmarks as tasks: `task.name = "vstar"` and so on (docs/benchmarks.md).

`base` says what a benchmark is, `opened` reads its rows, `averages` are means that several share;
every other module is the page of one benchmark, or its official rule. A user's own benchmark is
such a page outside the package.
"""
