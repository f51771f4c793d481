"""vLLM as an engine: servers of their own, spoken to over HTTP; only `worker` imports vllm.

`engine` is the `Engine`. `pool` routes requests and watches servers, `client` speaks to one, `wire`
writes requests and reads answers, and `checks` compares a server with the trainer. `server` starts
servers as a `process` each, `environment` builds the environment that they run in, and `worker`
runs inside them.
"""
