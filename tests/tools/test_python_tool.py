"""The Python tool: what a cell shows, what persists, and whose fault a failure is."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from axpo.errors import InfraError, ModelError
from axpo.sandbox import SessionBounds, canaries, folders, levels
from axpo.sandbox.errors import SandboxFault
from axpo.sandbox.inside import landlock, seccomp
from axpo.tools.base import EarlierCall, Observation, ToolContext, View
from axpo.tools.python import PythonTool

LEVELS = [level for level in ("landlock", "bubblewrap") if levels.obstacle(level) is None]
BOUNDS = SessionBounds(seconds=2.0, grace=0.5)

pytestmark = pytest.mark.skipif(not LEVELS, reason="no level of the sandbox works here")


class Notebook:
    """A started tool, called without `await`."""

    def __init__(self, tool: PythonTool) -> None:
        self.tool = tool
        self.runner = asyncio.Runner()
        self.runner.run(tool.start())

    def __call__(self, code: str, *pictures: Image.Image, trajectory: str = "one") -> Observation:
        context = ToolContext(tuple(View.whole(p) for p in pictures), trajectory)
        return self.runner.run(self.tool({"code": code}, context))


@pytest.fixture(scope="module", params=LEVELS)
def shared(request: pytest.FixtureRequest) -> Iterator[Notebook]:
    notebook = Notebook(PythonTool(request.param, packages="current", bounds=BOUNDS))
    yield notebook
    notebook.runner.run(notebook.tool.close())
    notebook.runner.close()


@pytest.fixture
def notebook(shared: Notebook) -> Iterator[Notebook]:
    yield shared
    for trajectory in list(shared.tool._sessions):
        shared.runner.run(shared.tool.end(trajectory))


def test_text_value_and_state(notebook: Notebook) -> None:
    assert notebook("x = 20\nprint('twenty')\nx + 1").text == "twenty\n21"
    assert notebook("x += 1").text == "(no output)"
    assert notebook("x").text == "21"
    assert "NameError: name 'x' is not defined" in notebook("x", trajectory="two").text


def test_tracebacks_show_the_models_own_lines(notebook: Notebook) -> None:
    notebook("import numpy as np\ndef f(n):\n    return np.linalg.inv(np.zeros((n, n)))")
    text = notebook("f(2)").text
    assert text.startswith("Traceback")
    assert text.endswith("numpy.linalg.LinAlgError: Singular matrix")
    assert 'File "<cell 1>", line 3, in f' in text
    assert "site-packages" not in text and "linalg.py" not in text
    assert "SyntaxError" in notebook("def f(:").text
    assert notebook("import sys; sys.exit(3)").text.endswith("SystemExit: 3")


def test_pictures_go_in_once_and_come_back(notebook: Notebook) -> None:
    first = Image.new("RGB", (30, 20), (1, 2, 3))
    second = Image.new("RGBA", (5, 6), (4, 5, 6, 7))
    assert notebook("image_0.size, image_0.getpixel((1, 1))", first).text == (
        "((30, 20), (1, 2, 3))"
    )
    assert notebook("image_0.putpixel((0, 0), (9, 9, 9))", first).text == "(no output)"
    seen = notebook("show(image_0)\nimage_1", first, second)
    assert [view.image.size for view in seen.views] == [(30, 20), (5, 6)]
    assert seen.views[0].image.getpixel((0, 0)) == (9, 9, 9)
    assert seen.views[1].image.getpixel((0, 0)) == (248, 248, 248)  # nearly nothing, on white
    assert seen.text == ""


def test_figures_come_back_and_are_closed(notebook: Notebook) -> None:
    code = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"
    (view,) = notebook(code).views
    assert view.image.size == (640, 480)
    assert notebook("plt.get_fignums()").text == "[]"
    assert len(notebook("plt.figure()").views) == 1


def test_packages_are_imported_before_the_session_that_names_them() -> None:
    bounds = replace(BOUNDS, seconds=30)  # imports count, and take long on a busy machine
    notebook = Notebook(PythonTool(LEVELS[0], packages="current", bounds=bounds))
    loaded = "import sys\n[n for n in ('sym' + 'py', 'matplot' + 'lib') if n in sys.modules]"
    try:
        assert notebook(loaded).text == "[]"
        late = notebook("import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()")
        assert late.text == "" and len(late.views) == 1
        named = notebook("import sympy\nsympy.Integer(2) ** 10", trajectory="two")
        assert named.text == "1024"
        assert notebook(loaded, trajectory="three").text == "['sympy']"
        assert notebook(loaded).text == "['matplotlib']"
    finally:
        notebook.runner.run(notebook.tool.close())
        notebook.runner.close()


def test_a_later_cell_that_imports_matplotlib_is_told_nothing_of_the_host(
    notebook: Notebook,
) -> None:
    notebook("1")  # names no package
    late = notebook("import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()")
    assert (late.text, len(late.views)) == ("", 1)
    assert notebook("import os; os.listdir('.'), os.access('/none', os.F_OK)").text == "([], False)"


def test_half_a_surrogate_pair_is_shown_as_a_question_mark(notebook: Notebook) -> None:
    assert notebook("x = 1\nprint('a\\ud83db')").text == "a?b"
    assert notebook("x").text == "1"


def test_pictures_are_shown_as_a_viewer_shows_them(notebook: Notebook) -> None:
    seen = notebook(
        "import numpy as np\nfrom PIL import Image\n"
        "show(Image.new('RGBA', (2, 2), (0, 0, 0, 0)))\n"
        "show(np.array([[0, 32896]], np.uint16))\n"
        "show(np.array([[0, 128]], np.int32))\n"
        "photo = Image.new('RGB', (4, 2))\nphoto.getexif()[0x0112] = 6\n"
        "photo.save('p.jpg', exif=photo.getexif())\nImage.open('p.jpg')"
    )
    first, second, third, fourth = [view.image for view in seen.views]
    assert first.getpixel((0, 0)) == (255, 255, 255)
    assert (second.getpixel((1, 0)), third.getpixel((1, 0))) == ((128,) * 3, (128,) * 3)
    assert fourth.size == (2, 4)
    floating = notebook("show(np.zeros((2, 2), np.float32))").text
    assert floating.endswith("expected 8 or 16 bits a channel")


@pytest.mark.parametrize(
    "code",
    [
        "Image.new('RGB', (1000, 500)).crop((0, 400, 1000, 402))",
        "show(Image.new('RGB', (3000, 1)))",
        "Image.new('RGB', (3000, 0))",
        "import matplotlib.pyplot as plt; plt.figure(figsize=(40, .1)); None",
    ],
)
def test_a_picture_that_no_model_takes_is_an_error_of_the_cell(
    notebook: Notebook, code: str
) -> None:
    seen = notebook(f"from PIL import Image\nkept = 5\n{code}")
    assert seen.views == ()
    assert "ValueError: this image cannot be shown: " in seen.text
    assert seen.text.endswith("expected sides of at most 100:1")
    assert notebook("kept").text == "5"


def test_a_long_picture_is_shrunk_to_one_that_a_model_takes(notebook: Notebook) -> None:
    (view,) = notebook("from PIL import Image\nImage.new('L', (20000, 200))").views
    assert view.image.size == (4000, 40)  # int(4096 / 100) high


def test_code_cannot_have_its_session_killed_for_a_fault_of_ours(notebook: Notebook) -> None:
    limits = "import resource as r\nkept = 5\nr.setrlimit(r.RLIMIT_CPU, (0, 0))"
    assert notebook(limits).text.endswith("not allowed to raise maximum limit")
    assert notebook("r.getrlimit(r.RLIMIT_CPU), r.prlimit(0, r.RLIMIT_CPU), kept").text == (
        f"(({BOUNDS.cpu}, {BOUNDS.cpu + 1}), ({BOUNDS.cpu}, {BOUNDS.cpu + 1}), 5)"
    )


def test_a_trajectorys_code_has_so_many_seconds_in_all() -> None:
    notebook = Notebook(PythonTool(LEVELS[0], packages="current", bounds=BOUNDS, total=0.6))
    try:
        notebook("x = 1")
        assert "Stopped after 0." in notebook("import time; time.sleep(60)").text
        spent = "your code has run for 0.6 s in all, the limit: no more is run"
        with pytest.raises(ModelError, match=spent):
            notebook("x")
        assert notebook("2", trajectory="two").text == "2"
        # A continuation has what its prefix left over.
        slept = EarlierCall({"code": "import time; time.sleep(0.7); y = 3"}, 0)
        context = ToolContext((), "three", (slept,))
        notebook.runner.run(notebook.tool.resume(context))
        with pytest.raises(ModelError, match=spent):
            notebook("y", trajectory="three")
        notebook.runner.run(notebook.tool.end("three"))
        assert notebook.tool._used.keys() == {"one", "two"}
    finally:
        notebook.runner.run(notebook.tool.close())
        notebook.runner.close()


MOVING = """
import os, time
for i in range(40): os.mkdir(f'e{i}')
os.mkdir('a')
written = 0
until = time.monotonic() + 1.9
while time.monotonic() < until and written < 1200:
    for i in range(40): os.rename(f'e{i}', 'x'); os.rename('x', f'e{i}')
    open(f'a/{written}', 'wb').write(bytes(4 << 20))
    written += 4
    os.rename('a', 'b'); os.rename('b', 'a')
print(written)
"""


def test_files_that_are_moved_about_count(notebook: Notebook) -> None:
    text = notebook(MOVING).text
    assert "over 64 MiB or 1000 files" in text


def test_a_session_stands_still_while_its_files_are_looked_at(
    notebook: Notebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook("1")
    child = notebook.tool._sessions["one"].child
    pid = Path(f"/proc/self/fdinfo/{child.pidfd}").read_text().split("Pid:")[1].split()[0]
    states: list[str] = []
    real = folders.overfull

    def look(*arguments: Any) -> bool:
        time.sleep(0.02)
        states.append(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0])
        return real(*arguments)

    monkeypatch.setattr(folders, "overfull", look)
    assert notebook("import time\ntime.sleep(0.7)\nprint(2)").text == "2"
    assert len(states) >= 2 and set(states) == {"T"}


def test_what_vanishes_meanwhile_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("gone", "kept"):
        (tmp_path / name).mkdir()
    (tmp_path / "kept" / "f").write_bytes(bytes(1 << 20))
    real = os.scandir

    def scan(path: str) -> Any:
        if path.endswith("gone"):
            raise FileNotFoundError
        return real(path)

    monkeypatch.setattr(folders.os, "scandir", scan)
    assert folders.overfull(tmp_path, 1 << 19, 100)
    assert not folders.overfull(tmp_path, 1 << 21, 100)


def test_large_pictures_become_smaller_and_many_are_counted(notebook: Notebook) -> None:
    (view,) = notebook("from PIL import Image\nImage.new('RGB', (4000, 1000))").views
    assert 0.9 * BOUNDS.pixels < view.image.width * view.image.height <= BOUNDS.pixels
    seen = notebook("for _ in range(7): show(image := Image.new('L', (8, 8)))")
    assert (len(seen.views), seen.text) == (4, "3 more pictures left out")


def test_a_flood_keeps_both_ends(notebook: Notebook) -> None:
    text = notebook("for i in range(100_000): print(i)").text
    assert text.startswith("0\n1\n") and text.endswith("\n99999")
    assert "characters left out" in text
    assert len(text) < BOUNDS.characters + 100


def test_too_slow_keeps_the_state_if_it_can_be_interrupted(notebook: Notebook) -> None:
    notebook("x = 1")
    text = notebook("print('begun')\nwhile True: x += 1").text
    assert text == "begun\nStopped after 2 s: too slow. Variables are kept."
    assert notebook("x > 1").text == "True"
    assert "All variables and files are lost" in notebook("sum(range(10 ** 12))").text
    assert "NameError" in notebook("x").text


def test_a_program_that_prints_for_ever_is_stopped_and_its_text_cut(notebook: Notebook) -> None:
    text = notebook("i = 0\nwhile True:\n    print(i)\n    i += 1").text
    assert text.startswith("0\n1\n") and "characters left out" in text
    assert text.endswith("\nStopped after 2 s: too slow. Variables are kept.")
    assert len(text) < BOUNDS.characters + 200
    assert notebook("i > 1000").text == "True"


def test_out_of_memory_is_an_error_of_the_cell(notebook: Notebook) -> None:
    notebook("kept = 5")
    assert "MemoryError" in notebook("x = []\nwhile True: x.append(bytes(1 << 28))").text
    assert notebook("del x\nkept").text == "5"


def test_own_files_last_until_the_end(notebook: Notebook) -> None:
    notebook("import os; os.mkdir('a'); open('f', 'w').write('x'); os.rename('f', 'a/f')")
    assert notebook("open('a/f').read()").text == "'x'"
    session = notebook.tool._sessions["one"]
    assert (session.folder / "a" / "f").exists()
    notebook.runner.run(notebook.tool.end("one"))
    assert not session.folder.exists()


def test_wrong_arguments_are_the_models(notebook: Notebook) -> None:
    for arguments in ({}, {"code": 1}, {"code": "1", "x": 2}, {"code": "1" * 60_000}):
        with pytest.raises(ModelError, match=r"code|x"):
            notebook.runner.run(notebook.tool(arguments, ToolContext()))


def test_killed_from_outside_is_ours_and_nobody_elses(notebook: Notebook) -> None:
    notebook("x = 1", trajectory="other")
    notebook("x = 1")

    async def killed() -> None:
        context = ToolContext((), "one")
        call = asyncio.ensure_future(notebook.tool({"code": "while True: pass"}, context))
        await asyncio.sleep(0.2)
        notebook.tool._sessions["one"].child.signal(signal.SIGKILL)
        with pytest.raises(InfraError, match="killed from outside"):
            await call

    notebook.runner.run(killed())
    assert notebook("x", trajectory="other").text == "1"
    text = notebook("x").text
    assert text.startswith("(The session was restarted;") and "NameError" in text
    assert notebook("2").text == "2"


def test_a_lost_fork_server_is_ours_and_is_replaced(notebook: Notebook) -> None:
    notebook("x = 1")
    server = notebook.tool._sandbox.server
    assert server is not None
    server._process.kill()
    with pytest.raises(InfraError, match="fork server has ended"):
        notebook("while True: pass")
    assert notebook("1 + 1").text.endswith("lost.)\n2")
    assert notebook.tool._sandbox.server is not server


def test_cancelled_call_ends_the_session_and_blocks_nobody(notebook: Notebook) -> None:
    async def both() -> float:
        slow = {"code": "while True: pass"}
        call = asyncio.ensure_future(notebook.tool(slow, ToolContext((), "slow")))
        await asyncio.sleep(0.3)
        start = time.monotonic()
        quick = [notebook.tool({"code": "1"}, ToolContext((), f"q{i}")) for i in range(8)]
        assert {seen.text for seen in await asyncio.gather(*quick)} == {"1"}
        took = time.monotonic() - start
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        return took

    assert notebook.runner.run(both()) < BOUNDS.seconds
    assert "slow" not in notebook.tool._sessions


def test_nothing_runs_between_cells(notebook: Notebook) -> None:
    notebook("1")
    end = notebook.tool._sessions["one"].child
    state = Path(f"/proc/self/fdinfo/{end.pidfd}").read_text().split("Pid:")[1].split()[0]
    time.sleep(0.05)
    status = Path(f"/proc/{state}/status").read_text()
    assert "State:\tT" in status
    for line in ("NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t0000000000000000"):
        assert line in status


def test_nothing_is_left_behind() -> None:
    def count() -> tuple[int, int]:
        return len(list(Path("/proc/self/fd").iterdir())), len(children())

    def children() -> list[str]:
        return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()

    async def life() -> Path:
        tool = PythonTool(LEVELS[0], packages="current", bounds=BOUNDS)
        await tool.start()
        calls = [tool({"code": "open('f', 'w')"}, ToolContext((), str(i))) for i in range(5)]
        await asyncio.gather(*calls)
        folder = tool._sandbox._folder.parent
        await tool.close()
        return folder

    asyncio.run(life())
    before = count()
    assert not asyncio.run(life()).exists()
    assert count() == before


def test_canaries_refuse_a_sandbox_that_does_not_hold(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def start() -> None:
        tool = PythonTool("unsafe", packages="current", bounds=BOUNDS)
        await tool.start()
        try:
            assert tool._sandbox.server is not None
            await canaries.check(tool._sandbox.server, tool._sandbox._new_folder())
        finally:
            await tool.close()

    with pytest.raises(SandboxFault) as caught:
        asyncio.run(start())
    names = "read a host file, connect to a listener, fork, execute, change rights, memory that"
    for name in names.split(", "):
        assert name in str(caught.value)
    assert "UNSAFE" in caplog.text


def test_levels_fail_closed_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levels, "obstacle", lambda level: f"no {level} here")
    with pytest.raises(SandboxFault, match=r"no bubblewrap here.*no landlock here"):
        levels.choose(None)
    with pytest.raises(SandboxFault, match="no landlock here"):
        levels.choose("landlock")
    monkeypatch.undo()
    with pytest.raises(SandboxFault, match="expected one of bubblewrap, landlock, unsafe"):
        levels.choose("docker")
    levels.obstacle.cache_clear()
    monkeypatch.setattr(landlock, "abi", lambda: 5)
    assert levels.obstacle("landlock") == "Landlock ABI 5, 6 is needed (Linux 6.12)"
    levels.obstacle.cache_clear()


def test_seccomp_tables_exist_for_two_machines_only() -> None:
    for machine in seccomp.ARCHITECTURES:
        assert len(seccomp.program(machine)) % 8 == 0
    with pytest.raises(OSError, match=r"riscv64.*x86_64 and aarch64"):
        seccomp.program("riscv64")


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy" / "__init__.py").write_text("raise ImportError('broken numpy')")
    with pytest.raises(InfraError, match="broken numpy"):
        asyncio.run(PythonTool(LEVELS[0], packages=tmp_path, bounds=BOUNDS).start())
    with pytest.raises(InfraError, match="pip install --target"):
        asyncio.run(PythonTool(LEVELS[0], packages=tmp_path / "none").start())


def test_removing_follows_no_link_and_needs_no_depth(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("kept")
    deep = tmp_path / "deep"
    deep.mkdir()
    (deep / "link").symlink_to(tmp_path)
    fd = os.open(deep, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=fd)
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    assert folders.overfull(deep, 1 << 30, 100)
    folders.remove(deep)
    assert outside.read_text() == "kept" and not deep.exists()


def test_bounds_of_the_call_leave_room_for_both_stages() -> None:
    tool = PythonTool(bounds=replace(BOUNDS, seconds=7))
    assert tool.timeout > 7 + 2 * BOUNDS.grace
