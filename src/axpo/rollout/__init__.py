"""From questions to trajectory trees: the agent loop around engine, tools and grading.

- `rendering`: examples and observations as token segments; `parsing`: what a sampled turn says
- `paths`: a growing path, from a prompt or from a cut in the tree
- `agent`: the loop of one trajectory, its limits and stop reasons
- `sampling`: a question's rollouts, and continuations from a cut
- `demonstrations`: a teacher's turns as a tree for supervised training
"""
