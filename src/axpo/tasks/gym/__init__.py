"""reasoning-gym's procedural data sets as a task (docs/reasoning_gym.md).

`task` mixes them, and `worker` is the process in which they make questions and score answers; it is
asked by `axpo.tasks.grading.gym`.
"""
