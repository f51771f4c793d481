"""Answers that were paid for, kept in a file: what the tools of search and a judge share.

`cache` asks for what the file lacks and counts what was paid; `database` runs its queries, and
those of the search indexes, off the event loop.
"""
