"""vLLM as an engine: servers of their own, spoken to over HTTP; only `worker` imports vllm.

`engine` is the `Engine`; `pool` routes requests and watches servers, `client` speaks to one,
`wire` is what requests and answers look like, `checks` what a server must be like. `server` starts
servers, `environment` builds what they run in, `worker` runs inside them.
"""
