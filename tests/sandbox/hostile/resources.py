"""Bombs: memory, disk, time, text and pictures."""

from __future__ import annotations

from tests.sandbox.hostile.snippet import Snippet

MEMORY = "memory stays below the session's bound"
DISK = "files stay below the session's bound, and are gone afterwards"
TIME = "the call returns soon after its time"
TEXT = "the answer's text stays below its bound"
VIEWS = "number and size of the answer's pictures stay below their bounds"
BOUNDED = "harmless only while it is bounded"

RESOURCES = [
    Snippet("memory_at_once", MEMORY, "x = bytearray(3 * AMOUNT); harm()"),
    Snippet("memory_mapped", MEMORY, "import mmap\nx = mmap.mmap(-1, 3 << 30); harm()"),
    Snippet("memory_piecewise", MEMORY, "import mmap\nx = []\n"
            "while len(x) < 300: x.append(mmap.mmap(-1, 10 << 20))\nharm()", None, BOUNDED),
    Snippet("memory_list", MEMORY, "x = [0] * (1 << 29); harm()", None, BOUNDED),
    Snippet("memory_kept", MEMORY, "x = []\n"
            "try:\n"
            "    while len(x) < 3000: x.append(bytes(1 << 20))\n"
            "    harm()\n"
            "except MemoryError:\n"
            "    while len(x) < 9_000_000: x.append(bytes(100))", None, BOUNDED),
    Snippet("disk_many_large", DISK, "for i in range(AMOUNT >> 23):\n"
            "    open(f'f{i}', 'wb').write(bytes(1 << 23))\nharm()"),
    Snippet("disk_one_huge", DISK, "open('f', 'wb').truncate(1 << 36); harm()"),
    Snippet("disk_far_seek", DISK, "f = open('f', 'wb', 0)\nf.seek(1 << 34); f.write(b'x')\n"
            "harm()"),
    Snippet("disk_many_small", DISK, "import time\n"
            "for i in range(3000): open(f'f{i}', 'w').close()\n"
            "time.sleep(0.3); harm()"),
    Snippet("disk_moved", DISK, "for i in range(100): os.mkdir(f'e{i}')\n"
            "names = os.listdir('.')\nfirst, names = names[0], names[1:]\n"
            "for i in range(AMOUNT >> 23):\n"
            "    open(f'{first}/{i}', 'wb').write(bytes(1 << 23))\n"
            "    names = [os.rename(n, n + 'x') or n + 'x' for n in names]\nharm()"),
    Snippet("disk_deep", DISK, "import time\n"
            "for i in range(2500): os.mkdir('d'); os.chdir('d')\n"
            "time.sleep(0.3); harm()", None, "its folder is awkward to remove"),
    Snippet("disk_without_rights", DISK, "os.umask(0o777)\n"
            "for i in range(30): os.makedirs(f'a{i}', 0); open(f'b{i}', 'w')\n", None, BOUNDED),
    Snippet("disk_hidden", DISK, "f = [open(f'f{i}', 'wb', 0) for i in range(20)]\n"
            "for i, file in enumerate(f): os.remove(f'f{i}'); file.write(bytes(1 << 20))\n",
            None, BOUNDED),
    Snippet("loop", TIME, "while True: pass", "hangs"),
    Snippet("loop_that_swallows", TIME, "while True:\n"
            "    try:\n        while True: pass\n"
            "    except BaseException: pass", "hangs"),
    Snippet("loop_that_ignores", TIME, "import signal\n"
            "signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass", "hangs"),
    Snippet("loop_in_c", TIME, "sum(range(10 ** 12))", "hangs"),
    Snippet("loop_in_regex", TIME, "import re; re.match(r'(a+)+$', 'a' * 60 + 'b')", "hangs"),
    Snippet("loop_in_power", TIME, "9 ** 9 ** 9", "hangs"),
    Snippet("loop_in_repr", TIME, "class A:\n"
            "    def __repr__(self):\n        while True: pass\nprint(A())", "hangs"),
    Snippet("loop_in_error", TIME, "class A(Exception):\n"
            "    def __str__(self):\n        while True: pass\nraise A", "hangs"),
    Snippet("sleep", TIME, "import time; time.sleep(1000)", "hangs"),
    Snippet("read_input", TIME, "import select\nselect.select([], [], [])", "hangs"),
    Snippet("alarm_after_cell", "nothing runs between cells",
            "import signal\nsignal.signal(signal.SIGALRM, lambda *_: None)\n"
            "signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001); harm()"),
    Snippet("timer_raw_call", "nothing runs between cells",
            "call('timer_create', 0, None, ctypes.byref(ctypes.c_long())); harm()"),
    Snippet("text_flood", TEXT, "while True: print('x' * 1000)", "hangs"),
    Snippet("text_at_once", TEXT, "print('x' * (200 << 20))", None, BOUNDED),
    Snippet("text_value", TEXT, "'\\ud800' * (1 << 20)", None, BOUNDED),
    Snippet("text_raw", TEXT, "while True: os.write(1, b'x' * 4096)", "hangs"),
    Snippet("text_error", TEXT, "raise ValueError('x' * (50 << 20))", None, BOUNDED),
    Snippet("picture_huge", VIEWS, "from PIL import Image\nImage.new('L', (30000, 30000))",
            None, BOUNDED),
    Snippet("picture_long", VIEWS, "from PIL import Image\nImage.new('RGB', (5_000_000, 1))",
            None, BOUNDED),
    Snippet("picture_bomb", VIEWS, "import io\nfrom PIL import Image\n"
            "Image.MAX_IMAGE_PIXELS = None\nb = io.BytesIO()\n"
            "Image.new('1', (40000, 40000)).save(b, 'PNG')\nImage.open(b).convert('RGB')",
            None, BOUNDED),
    Snippet("picture_flood", VIEWS, "from PIL import Image\n"
            "for _ in range(1000): show(Image.new('RGB', (64, 64)))", None, BOUNDED),
    Snippet("figure_huge", VIEWS, "import matplotlib.pyplot as p\n"
            "p.figure(figsize=(400, 400))", None, BOUNDED),
    Snippet("descriptors", "open files stay below the session's bound",
            "f = [open('/dev/null') for _ in range(200)]; harm()"),
    Snippet("recursion", "a crash ends this session alone", "import sys\n"
            "sys.setrecursionlimit(10 ** 9)\n"
            "class A:\n    def __getattr__(self, name): return getattr(self, name + 'x')\n"
            "f = lambda: f()\n"
            "A().x", None, "is a crash of its own process"),
]  # fmt: skip
