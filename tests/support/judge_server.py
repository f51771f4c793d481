"""A program in place of vLLM's python: a chat server that answers with its own arguments."""

from __future__ import annotations

import sys
from pathlib import Path

_SERVER = """#!{python}
import json, os, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
if sys.argv[1] == "-c":
    print("gpu 0.32.0")
    sys.exit()
if {dies!r}:
    sys.exit({dies!r})
words = sys.argv[3:]

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if {healthy} else 503)
        self.end_headers()

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        said = {says!r} or " ".join(words) + "|" + os.environ.get("CUDA_VISIBLE_DEVICES", "")
        body = json.dumps({{
            "choices": [{{"message": {{"content": said}}, "finish_reason": "stop"}}],
            "usage": {{"prompt_tokens": 10, "completion_tokens": 2}},
        }}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

print("listening", flush=True)
ThreadingHTTPServer(("127.0.0.1", int(words[words.index("--port") + 1])), Handler).serve_forever()
"""


def stand_in(folder: Path, says: str = "", dies: str = "", healthy: bool = True) -> str:
    """A program in `folder` that is started as vLLM's python is."""
    file = folder / "vllm-python"
    file.write_text(_SERVER.format(python=sys.executable, says=says, dies=dies, healthy=healthy))
    file.chmod(0o755)
    return str(file)
