"""Messages and tokens are made of each other; turns are what the family's template writes."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from axpo.chat.messages import Transcriber, turn_text
from axpo.engines.base import Picture
from axpo.errors import RequestError
from axpo.rollout.rendering import Rendering
from axpo.tools.base import Observation, View
from tests.support.rollouts import CHECKPOINT, decode, encode, example, make_rendering, zoom
from tests.support.tiny import tiny_picture

PROCESSOR = CHECKPOINT.processor
TRANSCRIBER = Transcriber(PROCESSOR.tokenizer, PROCESSOR.image_token, PROCESSOR.stop)
ZOOM = make_rendering()
SHOWN = "<|vision_start|><|image_pad|><|vision_end|>"
_CONTROL = re.compile(r"<\|\w+\|>|</?(?:tool_call|tool_response|think)>")


def call(arguments: Any, name: str = "image_zoom_in_tool", id: str = "call02000") -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def family(messages: Sequence[Mapping[str, Any]], tools: Sequence[Any]) -> str:
    """Oracle: what the family's thinking template writes of a tool loop, then the opening."""

    def text(content: Any) -> str:
        if isinstance(content, str):
            return content
        return "".join(part["text"] if part["type"] == "text" else SHOWN for part in content)

    out = ""
    for i, message in enumerate(messages):
        role, content = message["role"], text(message["content"])
        if i == 0 and tools:
            own = f"{content}\n\n" if role == "system" else ""
            specs = "".join(f"\n{json.dumps(tool, ensure_ascii=False)}" for tool in tools)
            out += (
                f"<|im_start|>system\n{own}# Tools\n\nYou may call one or more functions to assist "
                "with the user query.\n\nYou are provided with function signatures within "
                f"<tools></tools> XML tags:\n<tools>{specs}\n</tools>\n\nFor each function call, "
                "return a json object with function name and arguments within "
                "<tool_call></tool_call> XML tags:\n<tool_call>\n"
                '{"name": <function-name>, "arguments": <args-json-object>}\n'
                "</tool_call><|im_end|>\n"
            )
            if role == "system":
                continue
        if role == "tool":
            first = messages[i - 1]["role"] != "tool"
            last = i + 1 == len(messages) or messages[i + 1]["role"] != "tool"
            out += "<|im_start|>user" if first else ""
            out += f"\n<tool_response>\n{content}\n</tool_response>"
            out += "<|im_end|>\n" if last else ""
        elif role == "assistant":
            thought = message.get("reasoning", "").strip("\n")
            thought += "\n" if thought else ""  # the one difference: no empty line
            lead = content.lstrip("\n")
            out += f"<|im_start|>assistant\n<think>\n{thought}</think>\n\n{lead}"
            for number, made in enumerate(message.get("tool_calls", ())):
                arguments = json.loads(made["function"]["arguments"])
                out += "\n" if content or number else ""
                out += (
                    f'<tool_call>\n{{"name": "{made["function"]["name"]}", "arguments": '
                    f"{json.dumps(arguments, ensure_ascii=False)}}}\n</tool_call>"
                )
            out += "<|im_end|>\n"
        else:
            out += f"<|im_start|>{role}\n{content}<|im_end|>\n"
    return out + "<|im_start|>assistant\n<think>\n"


def path_of(
    rendering: Rendering, asked: Any, turns: Sequence[tuple[Any, Sequence[Observation]]]
) -> tuple[list[int], list[Picture]]:
    """The tokens and pictures of a path on which a model said `turns` and was shown results."""
    prompt, pictures = rendering.prompt(asked, "p")
    tokens, shown = list(prompt.tokens), list(pictures)
    for number, (said, results) in enumerate(turns):
        turn = TRANSCRIBER.turn(said)
        segment, more = rendering.observation(turn, results, f"o{number}")
        tokens += [*turn, *segment.tokens]
        shown += more
    return tokens, shown


def parts(pictures: Sequence[Picture]) -> list[dict[str, Any]]:
    return [{"type": "image", "digest": picture.digest} for picture in pictures]


TEXT = st.text(max_size=30).map(
    lambda text: unicodedata.normalize("NFC", text.encode("utf-8", "ignore").decode())
)
PIECES = st.sampled_from(
    ["<tool_call>", "</tool_call>", "</think>", "<think>", "<|im_end|>", "<|image_pad|>", "\n",
     "<tool_response>", " ", "é", "漢字", "🎈", '{"a": 1}', "# Tools\n\n", "</tools>"]
)  # fmt: skip
WORDS = st.lists(st.one_of(TEXT, PIECES), max_size=6).map("".join)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=6,
)


def composed(arguments: dict[str, Any]) -> bool:
    """Whether the tokenizer, which composes characters, leaves their JSON as it is: the escape of a
    control character may end in a letter, and an accent may follow."""
    return unicodedata.is_normalized("NFC", json.dumps(arguments, ensure_ascii=False))


CALL = st.tuples(
    st.sampled_from(["image_zoom_in_tool", "look"]), st.dictionaries(TEXT, JSON).filter(composed)
)


def plain(text: str) -> str:
    """Oracle of what is kept of a text: its control tokens with a space in them, composed."""
    text = unicodedata.normalize("NFC", text)
    while found := _CONTROL.search(text):
        text = f"{text[: found.start() + 1]} {text[found.start() + 1 :]}"
    return text


@st.composite
def said(draw: st.DrawFn, calls: int) -> dict[str, Any]:
    reasoning, content = draw(WORDS), draw(WORDS)
    if not reasoning.strip("\n"):  # a server that leaves thinking in the content is below
        content = re.sub("</?think>", "", content)
    return {
        "role": "assistant",
        "reasoning": reasoning,
        "content": content,
        "tool_calls": [
            call(json.dumps(arguments, ensure_ascii=False), name)
            for name, arguments in draw(st.lists(CALL, min_size=calls, max_size=calls))
        ],
    }


@st.composite
def result(draw: st.DrawFn) -> Observation:
    views = [
        View.whole(tiny_picture(seed, 32)) for seed in draw(st.lists(st.integers(0, 3), max_size=2))
    ]
    return Observation(draw(WORDS), tuple(views))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_what_is_said_and_shown_comes_back(data: st.DataObject) -> None:
    system = data.draw(st.one_of(st.none(), TEXT.filter(bool)), "system")
    tools = ZOOM.tools if data.draw(st.booleans(), "tools") else {}
    rendering = Rendering(PROCESSOR, tools, plain(system) if system else None)
    images = tuple(tiny_picture(n, 32) for n in range(data.draw(st.integers(0, 3), "pictures")))
    between = "<image>" if data.draw(st.booleans(), "between") else ""
    question = data.draw(TEXT, "question") + between.join(["", *(" in " for _ in images)])
    turns: list[tuple[Any, list[Observation]]] = []
    for _ in range(data.draw(st.integers(0, 3), "turns")):
        count = data.draw(st.integers(1, 3))
        turns.append((data.draw(said(count)), [data.draw(result()) for _ in range(count)]))
    asked = example(question=question, images=images)
    tokens, pictures = path_of(rendering, asked, turns)
    found = TRANSCRIBER.messages_of(tokens, parts(pictures))

    assert found.tools == [tool.spec for tool in tools.values()]
    shown = [part["digest"] for m in found.messages if isinstance(m["content"], list)
             for part in m["content"] if part["type"] == "image"]  # fmt: skip
    assert shown == [picture.digest for picture in pictures]
    written = [message for message in found.messages if message["role"] == "assistant"]
    for message, (wanted, _) in zip(written, turns, strict=True):
        thought = plain(wanted["reasoning"]).strip("\n")
        assert message.get("reasoning", "") == thought
        assert message["content"] == plain(wanted["content"].rstrip("\n")).lstrip("\n")
        made = [c["function"] for c in message["tool_calls"]]
        for got, given_call in zip(made, wanted["tool_calls"], strict=True):
            asked_for = given_call["function"]
            assert got["name"] == asked_for["name"]
            assert json.loads(got["arguments"]) == json.loads(plain(asked_for["arguments"]))
    ids = [c["id"] for m in written for c in m["tool_calls"]]
    answered = [m["tool_call_id"] for m in found.messages if m["role"] == "tool"]
    assert answered == ids and len(set(ids)) == len(ids)
    # ... and back again: what was read is said with the same tokens, and the template agrees.
    for message, (wanted, _) in zip(written, turns, strict=True):
        assert TRANSCRIBER.turn(message) == TRANSCRIBER.turn(wanted)
    collapsed = re.sub(r"(<\|image_pad\|>)+", "<|image_pad|>", decode(tokens))
    assert collapsed == family(found.messages, found.tools)


def test_a_path_is_what_the_shipped_template_writes() -> None:
    """The tiny tokenizer's own template knows turns alone: it is given what they hold."""
    turns = [
        {"reasoning": "small", "content": "I look.", "tool_calls": [call('{"a": [1, 2]}')]},
        {"reasoning": "", "content": "", "tool_calls": [call("{}"), call('{"é": "ü"}')]},
    ]
    shown = [[Observation("left")], [Observation("up"), Observation("down")]]
    tokens, _ = path_of(
        make_rendering({}), example(images=()), list(zip(turns, shown, strict=True))
    )
    results = [
        "\n".join(f"<tool_response>\n{o.text}\n</tool_response>" for o in some) for some in shown
    ]
    written = PROCESSOR.tokenizer.apply_chat_template(
        [
            {"role": "user", "content": "Which digit?"},
            {"role": "assistant", "content": f"<think>\n{turn_text(turns[0], True)}"},
            {"role": "user", "content": results[0]},
            {"role": "assistant", "content": f"<think>\n{turn_text(turns[1], True)}"},
            {"role": "user", "content": results[1]},
        ],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert decode(tokens) == written


@pytest.mark.parametrize(
    ("message", "text"),
    [
        # line breaks around thinking and content are the template's
        ({"reasoning": "\n\nhm\n", "content": "\n\n7"}, "hm\n</think>\n\n7"),
        ({"reasoning": "hm", "content": "look\n\n", "tool_calls": [call("{}")]},
         'hm\n</think>\n\nlook\n<tool_call>\n{"name": "image_zoom_in_tool", "arguments": {}}\n'
         "</tool_call>"),
        ({"reasoning": "hm", "content": "\n\n", "tool_calls": [call("{}"), call(None)]},
         "hm\n</think>\n\n"
         '<tool_call>\n{"name": "image_zoom_in_tool", "arguments": {}}\n</tool_call>\n'
         '<tool_call>\n{"name": "image_zoom_in_tool", "arguments": {}}\n</tool_call>'),
        # JSON is written as the family writes it
        ({"reasoning": "h", "tool_calls": [call('{"b":[0,1],"a":"\\u00e9"}')]},
         'h\n</think>\n\n<tool_call>\n{"name": "image_zoom_in_tool", "arguments": '
         '{"b": [0, 1], "a": "é"}}\n</tool_call>'),
        ({"reasoning": "h", "tool_calls": [call({"a": 1})]},
         'h\n</think>\n\n<tool_call>\n{"name": "image_zoom_in_tool", "arguments": {"a": 1}}\n'
         "</tool_call>"),
        # where thinking stands
        ({"reasoning_content": "hm", "content": "7"}, "hm\n</think>\n\n7"),
        ({"reasoning": "a", "reasoning_content": "b", "content": "7"}, "a\n</think>\n\n7"),
        ({"content": "<think>\nhm\n</think>\n\n7"}, "hm\n</think>\n\n7"),
        ({"reasoning": None, "content": "hm</think>7"}, "hm\n</think>\n\n7"),
        ({"reasoning": "hm", "content": "a </think> b"}, "hm\n</think>\n\na < /think> b"),
        ({"content": "7"}, "</think>\n\n7"),
        ({"reasoning": "\n", "content": None}, "</think>\n\n"),
        ({"content": [{"type": "text", "text": "7"}, {"type": "text", "text": "!"}]},
         "</think>\n\n7!"),
        # a call that the server did not look for, and what only looks like one
        ({"content": 'hm</think>\n\nI look.\n<tool_call>\n{"name":"f","arguments":{"a":1}}\n'
          "</tool_call>\n"},
         'hm\n</think>\n\nI look.\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n'
         "</tool_call>"),
        ({"content": "<tool_call>{}</tool_call>"}, "</think>\n\n< tool_call>{}< /tool_call>"),
        ({"content": '<tool_call>{"name": "f"}</tool_call> it said'},
         '</think>\n\n< tool_call>{"name": "f"}< /tool_call> it said'),
        ({"content": "<tool_call>{'name': 'f'}</tool_call>"},
         "</think>\n\n< tool_call>{'name': 'f'}< /tool_call>"),
        ({"reasoning": "<tool_call> or <|im_end|>?", "content": "7"},
         "< tool_call> or < |im_end|>?\n</think>\n\n7"),
        ({"content": "half \ud83d"}, "</think>\n\nhalf \\ud83d"),
    ],
)  # fmt: skip
def test_a_reply_in_every_dialect(message: dict[str, Any], text: str) -> None:
    assert turn_text(message, thinking=True) == text


@pytest.mark.parametrize(
    ("given_arguments", "back"),
    [
        ('{"a": 1', '{"a": 1'),
        ("[1, 2]", "[1, 2]"),
        ('"text"', '"text"'),
        ("</tool_call>", "< /tool_call>"),
        ('{"a": ' + "9" * 5000 + "}", '{"a": ' + "9" * 5000 + "}"),
        ("[" * 100_000, "[" * 100_000),
        ("", "{}"),
        ('{"a": "\\ud83d"}', '{"a": "\\ud83d"}'),
    ],
    ids=["broken", "list", "text", "tag", "digits", "deep", "empty", "half a pair"],
)
def test_arguments_that_are_no_object_are_the_models_to_read(
    given_arguments: str, back: str
) -> None:
    """The call is made with a text, which the tool refuses; the endpoint sees its own again."""
    message = {"content": "", "tool_calls": [call(given_arguments)]}
    tokens, _ = path_of(make_rendering(), example(images=()), [(message, [Observation("no")])])
    turn = TRANSCRIBER.turn(message)
    (made,) = ZOOM.parse(turn).calls
    if back.startswith('{"a": "\\ud'):
        assert made.error is not None  # half a pair can be handed to no tool
        return
    assert made.error is None
    assert made.arguments == ({} if back == "{}" else back)
    said_again = TRANSCRIBER.messages_of(tokens, []).messages[-2]
    assert said_again["tool_calls"][0]["function"]["arguments"] == back


def test_a_model_that_does_not_think_has_no_place_for_it() -> None:
    message = {"reasoning": "hm", "content": "\n7", "tool_calls": [call("{}", "f")]}
    made = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    assert turn_text(message, thinking=False) == f"7\n{made}"


def test_what_was_cut_off_stays_open() -> None:
    assert turn_text({"reasoning": "so far"}, True, cut=True) == "so far"
    assert turn_text({"content": "<think>so far"}, True, cut=True) == "so far"
    assert turn_text({"reasoning": "hm", "content": "7 a"}, True, cut=True) == "hm\n</think>\n\n7 a"
    assert TRANSCRIBER.turn({"content": "\n"}, cut=True) == []
    assert TRANSCRIBER.turn({"content": "7"})[-1] == PROCESSOR.stop[0]


@pytest.mark.parametrize(
    "turn",
    [
        "hm</think>\n\n<tool_call>\n{'a': }\n</tool_call><|im_end|>",
        f"hm</think>\n\n{zoom()} and words<|im_end|>",
        f"hm</think>\n\n{zoom()}\n<tool_call>\n{{<|im_end|>",
    ],
)
def test_a_turn_that_no_endpoint_could_have_said_is_sent_as_text(turn: str) -> None:
    rendering = make_rendering()
    prompt, _ = rendering.prompt(example(images=()), "p")
    calls = rendering.parse(encode(turn)).calls
    results = [Observation(f"Error {n}", (View.whole(tiny_picture(n, 32)),) * n)
               for n, _ in enumerate(calls)]  # fmt: skip
    segment, pictures = rendering.observation(encode(turn), results, "o")
    found = TRANSCRIBER.messages_of(
        [*prompt.tokens, *encode(turn), *segment.tokens], parts(pictures)
    )
    assistant, user = found.messages[-2:]
    assert assistant == {
        "role": "assistant", "reasoning": "hm",
        "content": turn.removeprefix("hm</think>\n\n").removesuffix("<|im_end|>"),
    }  # fmt: skip
    assert user["role"] == "user"
    text = user["content"] if isinstance(user["content"], str) else user["content"][0]["text"]
    assert text.startswith("<tool_response>\nError 0\n</tool_response>")


def test_an_environments_reply_is_a_users_turn() -> None:
    rendering = make_rendering({})
    prompt, _ = rendering.prompt(example(images=()), "p")
    turn = TRANSCRIBER.turn({"reasoning": "hm", "content": "Is it red?"})
    segment, pictures = rendering.reply(Observation("No.", (View.whole(tiny_picture(1, 32)),)), "e")
    found = TRANSCRIBER.messages_of([*prompt.tokens, *turn, *segment.tokens], parts(pictures))
    assert found.messages == [
        {"role": "user", "content": "Which digit?"},
        {"role": "assistant", "reasoning": "hm", "content": "Is it red?"},
        {"role": "user", "content": [{"type": "text", "text": "No."}, *parts(pictures)]},
    ]


def test_a_cut_within_a_turn_is_refused() -> None:
    prompt, _ = make_rendering().prompt(example(images=()), "p")
    for tokens in ([*prompt.tokens, *encode("I th")], prompt.tokens[:-1], encode("words"), ()):
        with pytest.raises(RequestError, match="whole turns"):
            TRANSCRIBER.messages_of(tokens, [])
