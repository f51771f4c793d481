"""From a recipe to a run: the one place where task, tools, model, engine and learner meet.

`tools` makes the tools and imports no torch, `models` loads weights, `runs` puts a run together.
The loops get what they work with as a `Run` of their own and build nothing themselves.
"""
