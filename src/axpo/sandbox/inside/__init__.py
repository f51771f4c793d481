"""The code that runs inside the sandbox: standard library only, started with `python -I -S`.

The fork server (`main`) imports packages once and forks one child per session; the child
locks itself in (`confine`, `landlock`, `seccomp`) and then runs cells (`notebook`). The parent
imports `wire` and `landlock` from here; nothing here imports axpo.
"""
