"""reasoning-gym's procedural data sets as a task (docs/reasoning_gym.md).

`task` mixes them, `programs` has the Python programs that demonstrations call, and `worker` is the
process in which sets make questions and score answers; it is asked by `axpo.tasks.grading.gym`.
"""
