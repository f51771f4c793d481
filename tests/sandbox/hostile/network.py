"""Network and sockets: nothing leaves, nothing is listened to."""

from __future__ import annotations

from tests.sandbox.hostile.snippet import Snippet

SILENT = "no packet and no connection leaves the session"
DEAF = "nothing can connect to the session"

NETWORK = [
    Snippet("tcp_connect", SILENT, "import socket\n"
            "socket.create_connection(('127.0.0.1', TCP), 1); harm()"),
    Snippet("tcp_raw_call", SILENT, "call('socket', 2, 1, 0); harm()"),
    Snippet("tcp_listen", DEAF, "import socket\ns = socket.socket()\n"
            "s.bind(('127.0.0.1', 0)); s.listen(); harm()"),
    Snippet("tcp_six", SILENT, "import socket\nsocket.socket(socket.AF_INET6); harm()",
            None, "a machine may have no IPv6"),
    Snippet("udp_send", SILENT, "import socket\n"
            "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', UDP)); harm()"),
    Snippet("http", SILENT, "import urllib.request\n"
            "try: urllib.request.urlopen(f'http://127.0.0.1:{TCP}/', timeout=0.2)\n"
            "except TimeoutError: harm()  # it was let through; the listener says nothing"),
    Snippet("unix_connect", SILENT, "import socket\n"
            "socket.socket(socket.AF_UNIX).connect(UNIX); harm()"),
    Snippet("abstract_connect", SILENT, "import socket\n"
            "socket.socket(socket.AF_UNIX).connect(ABSTRACT); harm()"),
    Snippet("netlink", "the host's network is not described", "import socket\n"
            "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0); harm()"),
    Snippet("socket_pair", "no socket to pass descriptors with", "import socket\n"
            "socket.socketpair(); harm()"),
    Snippet("io_uring", "no way around the filter",
            "call('io_uring_setup', 4, ctypes.create_string_buffer(120)); harm()",
            None, "a kernel may have it switched off"),
]  # fmt: skip
