"""From questions to trajectory trees: the agent loop around engine, tools and grading.

- `rendering`: examples and observations as token segments
- `control`: control tokens spelled by text from outside; `parsing`: what a sampled turn says
- `paths`: a growing path, from a prompt or from a cut in the tree
- `agent`: the loop of one trajectory, its limits and stop reasons; `episodes`: environments
- `sampling`, `branching`, `critiques`: a question's rollouts, continuations, second attempts
- `demonstrations`: a teacher's turns as a tree for supervised training
"""
