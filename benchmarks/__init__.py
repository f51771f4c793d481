"""Benchmarks of axpo: `python -m benchmarks` runs them and writes `docs/performance.md`."""

import os

# Read when torch is imported; its profiler, which counts memory, logs every start and stop.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
