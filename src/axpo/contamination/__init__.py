"""Whether rows to train on are rows of a benchmark (docs/data.md, "Contamination").

`words` says when two questions are equal, `prints` when two pictures are, `index` which rows are
then one, and `find` goes over the rows of both sides and remembers what it found.
"""
