"""Functions as tools: their schema, what they accept, what becomes of what they return."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum, StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, NewType

import numpy as np
import pytest
from PIL import Image
from pydantic import BaseModel, Field

from axpo.config import LimitSettings
from axpo.errors import InfraError, ModelError, ToolDefinitionError
from axpo.tools import make_tools, tool
from axpo.tools.base import EarlierCall, Observation, Tool, ToolContext, View
from axpo.tools.function import FunctionTool
from axpo.tools.runner import CallResult, run_call
from axpo.tools.toolbox import Toolbox
from axpo.tree import CallStatus

DOCS = Path(__file__).parents[2] / "docs" / "tools.md"
PICTURE = Image.new("RGB", (4, 2), "red")


class Unit(Enum):
    CM = "cm"
    INCH = "inch"


class Point(BaseModel):
    x: float
    title: str = ""


@tool
async def measure(
    context: ToolContext,
    lengths: list[int],
    corner: tuple[float, float],
    unit: Unit = Unit.CM,
    side: Annotated[Literal["a", "b"], Field(description="Own words.")] = "a",
    at: Point | None = None,
) -> str:
    """Measure something,
    over two lines.

    Args:
        lengths: How long,
            each of them.
        corner (tuple): Where: x, y.
        side: Not shown.

    Returns:
        Nothing of interest.
    """
    return f"{lengths} {corner} {unit.value} {side} {at and at.x} {context.trajectory}"


def run(tool: Tool, arguments: Any = None, *views: View) -> CallResult:
    context = ToolContext(views, "t1")
    return asyncio.run(
        run_call({"it": tool}, "it", {} if arguments is None else arguments, context)
    )


def test_the_schema_is_the_signatures() -> None:
    assert measure.spec["function"]["name"] == measure.name == "measure"
    assert measure.spec["function"]["description"] == "Measure something,\nover two lines."
    schema = measure.spec["function"]["parameters"]
    assert list(schema["properties"]) == ["lengths", "corner", "unit", "side", "at"]
    assert schema["required"] == ["lengths", "corner"]
    assert schema["properties"]["lengths"] == {
        "type": "array", "items": {"type": "integer"}, "description": "How long, each of them.",
    }  # fmt: skip
    assert schema["properties"]["corner"]["description"] == "Where: x, y."
    assert schema["properties"]["side"] == {
        "enum": ["a", "b"], "type": "string", "default": "a", "description": "Own words.",
    }  # fmt: skip
    # Titles are pydantic's noise; a field of that name is not.
    assert schema["$defs"]["Point"]["properties"] == {
        "x": {"type": "number"}, "title": {"type": "string", "default": ""},
    }  # fmt: skip


def test_arguments_become_the_annotated_types() -> None:
    given = {"lengths": [1], "corner": [1, 2.5], "unit": "inch", "at": {"x": 1}}
    assert run(measure, given).observation.text == "[1] (1.0, 2.5) inch a 1.0 t1"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"lengths": ["3"]}, "lengths[0] is '3': input should be a valid integer"),
        ({"lengths": [True]}, "lengths[0] is True: input should be a valid integer"),
        ({"lengths": [1.0]}, "lengths[0] is 1.0: input should be a valid integer"),
        ({"lengths": 3}, "lengths is 3: input should be a valid array"),
        ({"corner": [1]}, "corner[1] is [1]: field required"),
        ({"corner": [1, float("nan")]}, "corner[1] is nan: input should be a finite number"),
        ({"unit": "mile"}, "unit is 'mile': input should be 'cm' or 'inch'"),
        ({"side": "c"}, "side is 'c': input should be 'a' or 'b'"),
        ({"at": {"x": "y"}}, "at.x is 'y': input should be a valid number"),
        ({"size": 1}, "'size' is unknown: expected lengths, corner, unit, side, at"),
        ({"context": {}}, "'context' is unknown: expected lengths, corner, unit, side, at"),
        ({"lengths": [10**5000]}, "arguments cannot be read: Exceeds the limit (4300 digits)"),
    ],
)
def test_a_wrong_call_is_told_the_field(change: dict[str, Any], error: str) -> None:
    result = run(measure, {"lengths": [1], "corner": [1, 2]} | change)
    assert result.status is CallStatus.MODEL_ERROR
    assert result.error is not None and result.error.startswith(error)
    assert len(result.error) < 200


def test_a_missing_argument_is_named() -> None:
    expected = "lengths is missing: expected lengths, corner, unit, side, at"
    assert run(measure, {"corner": [1, 2]}).error == expected


@pytest.mark.parametrize(
    ("value", "observation"),
    [
        ("text", Observation("text")),
        (PICTURE, Observation("", (View.whole(PICTURE),))),
        (["a", PICTURE, "b"], Observation("a\nb", (View.whole(PICTURE),))),
        ((), Observation()),
        (Observation("as it is", cached=True), Observation("as it is", cached=True)),
    ],
)
def test_results_become_observations(value: Any, observation: Observation) -> None:
    @tool
    async def give():
        """Give it."""
        return value

    assert run(give) == CallResult(CallStatus.OK, observation)


@pytest.mark.parametrize(
    ("raised", "status", "error"),
    [
        (ModelError("x is 3"), CallStatus.MODEL_ERROR, "x is 3"),
        (InfraError("down"), CallStatus.INFRA_ERROR, "it: down"),
        (ZeroDivisionError("0"), CallStatus.INFRA_ERROR, "it: ZeroDivisionError: 0"),
        (StopIteration("s"), CallStatus.INFRA_ERROR, "it: RuntimeError: StopIteration: s"),
        (SystemExit(1), CallStatus.INFRA_ERROR, "it: RuntimeError: SystemExit: 1"),
    ],
)
def test_what_a_thread_raises_arrives(raised: BaseException, status: str, error: str) -> None:
    @tool
    def fail():
        """Fail."""
        raise raised

    result = run(fail)
    assert (result.status, result.error) == (status, error)


def test_an_async_function_cannot_exit_and_none_is_no_result() -> None:
    @tool
    async def leave():
        """Leave."""
        raise SystemExit

    @tool
    def nothing():
        """Give nothing."""

    assert run(leave).error == "it: RuntimeError: leave called exit"
    assert "TypeError: returned NoneType: expected str" in str(run(nothing).error)


def returning(annotation: Any) -> Any:
    """A plain function of this result."""

    def give(a: int):
        """Give it."""

    give.__annotations__["return"] = annotation
    return give


@pytest.mark.parametrize(
    ("annotation", "said"),
    [
        (int, r"give returns int: expected str, PIL.Image.*; return str\(...\) of it"),
        (float, "give returns float"),
        (bool, "give returns bool"),
        (bytes, "give returns bytes"),
        (dict, r"give returns dict: .*return json.dumps\(...\)"),
        (dict[str, int], "give returns dict"),
        (Mapping[str, Any], "give returns Mapping"),
        (None, 'give returns None: .*return what the model is to read, "" for nothing'),
        (str | None, "give returns None"),
        (Annotated[int, "pixels"], "give returns int"),
        (Literal["a", 3], "give returns int"),
        (list[int], "give returns int"),
        (tuple[str, dict[str, str]], "give returns dict"),
        (list[list[str]], "give returns list"),
        (list[Observation], "give returns Observation"),
        (Iterator[str], "give returns Iterator"),
        (np.ndarray, "give returns ndarray"),
        (NewType("Count", int), "give returns int"),
    ],
)
def test_a_type_that_can_be_no_result_is_refused(annotation: Any, said: str) -> None:
    with pytest.raises(ToolDefinitionError, match=f"^{said}"):
        tool(returning(annotation))


@pytest.mark.parametrize(
    "annotation",
    [
        str, Image.Image, View, Observation, str | Image.Image, list, list[str], tuple[str, ...],
        tuple[str, Image.Image], Sequence[str | View], Annotated[str, "text"], Any, object,
        Literal["yes", "no"], NewType("Text", str), list[Any], StrEnum,
    ],
)  # fmt: skip
def test_a_type_that_may_be_one_is_taken(annotation: Any) -> None:
    assert tool(returning(annotation)).name == "give"


def test_hung_threads_are_counted_and_then_the_tool_is_refused() -> None:
    free = threading.Event()

    @tool(timeout=0.3, limits=LimitSettings(max_stuck=2, concurrency=1))
    def hang():
        """Hang."""
        free.wait(60)
        return "free"

    async def scenario() -> list[str | None]:
        tools = Toolbox({"it": hang})
        errors = [(await run_call(tools, "it", {}, ToolContext())).error for _ in range(3)]
        assert hang.stuck == 2
        free.set()
        while hang.stuck:
            await asyncio.sleep(0.01)
        again = await run_call(tools, "it", {}, ToolContext())
        return [*errors, again.observation.text]

    late = "it: no result after 0.3 s"
    refused = "it: 2 calls were given up and still run"
    assert asyncio.run(asyncio.wait_for(scenario(), 30)) == [late, late, refused, "free"]


def _untyped(x) -> str:
    """Doc."""
    return ""


def _open(*x: int) -> str:
    """Doc."""
    return ""


def _silent(x: int) -> str:
    return ""


def _stray(x: int) -> str:
    """Doc.

    Args:
        y: No such parameter.
    """
    return ""


def _unknown(x: Missing) -> str:  # noqa: F821  # pyright: ignore
    """Doc."""
    return ""


def _schemaless(x: threading.Lock) -> str:
    """Doc."""
    return ""


@pytest.mark.parametrize(
    ("function", "error"),
    [
        (_untyped, "_untyped: parameter 'x' needs a type"),
        (_open, "_open: parameter 'x': expected one that can be given by name"),
        (_silent, "_silent needs a docstring"),
        (_stray, "_stray: the docstring's 'y' is no parameter"),
        (_unknown, "_unknown: name 'Missing' is not defined in an annotation"),
        (_schemaless, "_schemaless: "),
    ],
)
def test_what_cannot_be_a_tool_is_refused(function: Any, error: str) -> None:
    with pytest.raises(ToolDefinitionError, match=re.escape(error)):
        tool(function)


MODULE = '''
from axpo.tools import Tool, tool

@tool
def ping() -> str:
    """Ping."""
    return "pong"

def plain() -> str: ...
value = 3

class Texts(Tool):
    name, spec, timeout = "texts", {}, 1.0
    async def __call__(self, arguments, context) -> str: ...

class Unnamed(Tool):
    spec = {}
    async def __call__(self, arguments, context): ...

class Duck:
    name, spec, timeout = "duck", {}, 1.0
    async def __call__(self, arguments, context): ...

texts, unnamed, duck = Texts(), Unnamed(), Duck()
'''


TYPO = """
from axpo.tools import Tool

class Notes(Tool):
    async def ends(self, trajectory): ...
"""


ADDS = """
from axpo.tools import tool

@tool
def add(a: int, b: int) -> int:
    'Add.'
    return a + b
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    return tmp_path


def test_a_recipe_names_a_tool_of_the_current_folder(folder: Path) -> None:
    (folder / "mine_a.py").write_text(MODULE)
    tools = make_tools(["image_zoom_in_tool", "mine_a:ping"])
    assert list(tools) == ["image_zoom_in_tool", "ping"]
    assert run(tools["ping"]).observation.text == "pong"


@pytest.mark.parametrize(
    ("name", "error"),
    [
        (
            "mine_b:pong",
            "mine_b has no 'pong'; its tools are ping, Texts, Unnamed, texts, unnamed",
        ),
        ("mine_b:plain", "'mine_b:plain' is a function, not a tool; put @axpo.tools.tool above"),
        ("mine_b:value", "'mine_b:value' is a int, not a tool"),
        ("mine_b:texts", "'mine_b:texts': __call__ of Texts returns str: expected Observation"),
        ("mine_b:unnamed", "'mine_b:unnamed': Unnamed has no name and no timeout"),
        ("mine_b:duck", "'mine_b:duck' is a Duck, not a tool; derive Duck from axpo.tools.Tool"),
        ("mine_b:Duck", "a class, not a tool; derive Duck from axpo.tools.Tool"),
        ("mine_b:Texts", "'mine_b:Texts': __call__ of Texts returns str: expected Observation"),
        ("mine_h:notes", "cannot be imported: TypeError: Notes.ends: a tool has 'end'; give a"),
        ("mine_g:add", "mine_g cannot be imported: ToolDefinitionError: add returns int: expected"),
        ("mine_c:ping", "there is no module 'mine_c' in "),
        ("mine_d:ping", "mine_d needs 'no_such_package'"),
        ("mine_e:ping", "mine_e cannot be imported: SyntaxError"),
        ("zoom", "unknown tool 'zoom'; there are image_zoom_in_tool, "),
    ],
)
def test_a_wrong_name_says_what_is_wrong(folder: Path, name: str, error: str) -> None:
    (folder / "mine_b.py").write_text(MODULE)
    (folder / "mine_d.py").write_text("import no_such_package")
    (folder / "mine_e.py").write_text("def")
    (folder / "mine_g.py").write_text(ADDS)
    (folder / "mine_h.py").write_text(TYPO)
    with pytest.raises(ValueError, match=re.escape(error)):
        make_tools([name])


def test_two_tools_of_one_name_are_refused(folder: Path) -> None:
    (folder / "mine_f.py").write_text(MODULE)
    with pytest.raises(ValueError, match="'mine_f:ping': there is a tool 'ping' already"):
        make_tools(["mine_f:ping", "mine_f:ping"])


def documented(folder: Path, number: int, name: str) -> Tool:
    """The tool `name` of an example in the documentation."""
    examples = re.findall(r"```python\n(.*?)```", DOCS.read_text(), flags=re.DOTALL)
    (folder / f"my_tools_{number}.py").write_text(examples[number])
    return make_tools([f"my_tools_{number}:{name}"])[name]


def test_the_documented_tool_with_state_runs(folder: Path) -> None:
    box = Toolbox({"note": documented(folder, 1, "note")})

    async def keep(trajectory: str, line: Any, *earlier: str) -> str:
        calls = tuple(EarlierCall({"line": known}, 0) for known in earlier)
        context = ToolContext((), trajectory, calls)
        return (await run_call(box, "note", {"line": line}, context)).observation.text

    async def life() -> list[str]:
        said = [await keep("a", "x"), await keep("a", "y"), await keep("b", "z")]
        await box.end("a")
        return [*said, await keep("a", "x"), await keep("c", "y", "x"), await keep("c", 3)]

    wrong = "Error: line is 3: expected a string"
    assert asyncio.run(life()) == ["x", "x\ny", "z", "x", "x\ny", wrong]


def test_the_documented_example_runs(folder: Path) -> None:
    mirror = documented(folder, 0, "mirror")
    assert isinstance(mirror, FunctionTool)
    picture = Image.new("RGB", (2, 1), "red")
    picture.putpixel((0, 0), (0, 0, 255))
    result = run(mirror, {"img_idx": 0}, View.whole(picture))
    assert result.observation.text == "Image 0, left-right swapped:"
    assert result.observation.views[0].image.getpixel((1, 0)) == (0, 0, 255)
    wrong = run(mirror, {"img_idx": 0, "side": "up"}, View.whole(picture))
    assert f"`{wrong.observation.text}`" in DOCS.read_text()
    assert run(mirror, {"img_idx": 1}).error == "img_idx is 1: there are 0 images"
