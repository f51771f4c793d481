"""Search: texts and pictures for a query, from an index or the web, asked once and recorded.

`base` says what a source of answers is. `corpus` (made by `index`) and `tavily` find texts,
`gallery` pictures; `recorded` and `cache` keep their answers for later runs. Nothing here knows
what a tool is.
"""
