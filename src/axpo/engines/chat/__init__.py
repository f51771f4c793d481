"""The engine that asks a chat endpoint: a model of its own, whose tokens and weights nobody sees.

`settings` describes and starts it, `engine` is the running one. Messages and tokens are made of
each other by `axpo.chat.messages`.
"""
