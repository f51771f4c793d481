"""Search: the tools `web_search`, `web_extractor` and `image_search` and what answers them.

`settings` makes the tools; `web` and `image` are what a model sees; `corpus` (made by `index`),
`tavily` and `gallery` answer; `recorded` and `cache` keep answers for later runs.
"""
