"""Chat endpoints, and the conversation that the family's token ids spell.

`client` speaks HTTP with any OpenAI-compatible API, for the judge and for the engine `chat`.
`parsing` reads what a turn of the model says, `control` keeps text from outside plain, and
`messages` turns a path's tokens into an endpoint's messages and its replies into turns.
"""
