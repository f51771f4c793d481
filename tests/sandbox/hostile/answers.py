"""Forged results: whatever is written to the protocol's connection, only this session suffers."""

from __future__ import annotations

from tests.sandbox.hostile.snippet import Snippet

OWN = "only this session's own answer is affected, and it is bounded"
PARENT = "needs a parent that speaks the protocol"

FIND = (
    "import json, stat, struct, time\n"
    "def is_socket(fd):\n"
    "    try: return stat.S_ISSOCK(os.fstat(fd).st_mode)\n"
    "    except OSError: return False\n"
    "fd = next(filter(is_socket, range(3, 4096)))\n"
    "def send(message, pixels=b'', length=None):\n"
    "    text = message if isinstance(message, bytes) else json.dumps(message).encode()\n"
    "    data = struct.pack('!II', len(text), len(pixels) if length is None else length)\n"
    "    os.write(fd, data + text + pixels)\n"
    "def answer(**other):\n"
    "    return dict(id=1, text='forged', pictures=[], interrupted=False) | other\n"
)


def _forged(name: str, code: str) -> Snippet:
    return Snippet(name, OWN, FIND + code, None, PARENT)


ANSWERS = [
    _forged("answer_forged", "send(answer())"),
    _forged("answer_twice", "send(answer()); send(answer(id=2))"),
    _forged("answer_early", "send(answer(id=7)); time.sleep(0.2)"),
    _forged("answer_huge_length", "os.write(fd, b'\\xff' * 8); time.sleep(0.2)"),
    _forged("answer_huge_pixels", "send(answer(), b'', 0xffffffff); time.sleep(0.2)"),
    _forged("answer_garbage", "os.write(fd, bytes(range(256)) * 50); time.sleep(0.2)"),
    _forged("answer_no_end", "os.write(fd, struct.pack('!II', 1000, 0)); time.sleep(30)"),
    _forged("answer_slowly", "os.write(fd, b'\\0\\0')\nwhile True: time.sleep(0.01)"),
    _forged("answer_nested", "send(b'[' * 30000); time.sleep(0.2)"),
    _forged("answer_large_number", "send(b'{\"id\": ' + b'9' * 20000 + b'}'); time.sleep(0.2)"),
    _forged("answer_wrong_types", "send(answer(text=[1], pictures='x')); time.sleep(0.2)"),
    _forged("answer_surrogates", "send(answer(text='\\ud800\\udfff\\x00' * 100))"),
    _forged("answer_long_text", "send(answer(text='x' * 90000))"),
    _forged(
        "answer_picture_bomb",
        "send(answer(pictures=[dict(width=100000, height=100000)])); time.sleep(0.2)",
    ),
    _forged(
        "answer_negative_picture",
        "send(answer(pictures=[dict(width=-10, height=-10)]), b'x' * 300)\ntime.sleep(0.2)",
    ),
    _forged(
        "answer_short_picture",
        "send(answer(pictures=[dict(width=10, height=10)]), b'x'); time.sleep(0.2)",
    ),
    _forged(
        "answer_thin_picture",
        "send(answer(pictures=[dict(width=3000, height=1)]), b'x' * 9000); time.sleep(0.2)",
    ),
    _forged(
        "answer_many_pictures",
        "send(answer(pictures=[dict(width=1, height=1)] * 200), b'x' * 600)\ntime.sleep(0.2)",
    ),
    _forged(
        "answer_pickle",
        "import pickle\n"
        "class Evil:\n"
        "    def __reduce__(self): return open, (HOST + '/pickled', 'w')\n"
        "send(pickle.dumps(Evil())); time.sleep(0.2)",
    ),
    _forged("connection_closed", "os.close(fd)"),
    _forged("connection_closed_alive", "os.close(fd)\nwhile True: time.sleep(1)"),
    _forged("connection_to_itself", "os.dup2(0, fd); print('x')"),
    Snippet("exit", OWN, "os._exit(0)", None, PARENT),
    Snippet("crash", OWN, "ctypes.string_at(0)", None, PARENT),
    Snippet("abort", OWN, "ctypes.CDLL(None).abort()", None, PARENT),
    Snippet(
        "tamper_inside",
        OWN,
        "import builtins, gc, json, sys\n"
        "json.dumps = lambda *_, **__: 'x' * 100\n"
        "for name in list(sys.modules): sys.modules.pop(name)\n"
        "builtins.__dict__.clear()",
        None,
        PARENT,
    ),
]
