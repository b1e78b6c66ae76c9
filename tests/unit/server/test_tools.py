"""Tools: which answer is enforced, how calls are parsed and streamed, and what the model is told."""

import json
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated.serving import VOCAB_SIZE, LetterTokenizer, SimulatedResources, running_server

from forerun.engine.constraint_grammar import GrammarCompiler
from forerun.engine.server.chat_message import AssistantMessage
from forerun.engine.server.schemas import ChatRequest
from forerun.engine.server.tool_prompt import calls_constraint, offered_functions, template_messages

pytest.importorskip("llguidance")
openai = pytest.importorskip("openai")

MESSAGES = [{"role": "user", "content": "weather?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Look out of the window.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
NOW = {"type": "function", "function": {"name": "now"}}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome {}]\\"", "days": [1]}}\n</tool_call>'


@pytest.fixture(scope="module")
def server():
    with running_server(SimulatedResources(capacity=2048)) as running:
        yield running


@pytest.fixture(scope="module")
def api(server):
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60, http_client=httpx.Client(verify=False)
    ) as client:
        yield client


@pytest.fixture(scope="module")
def model(api):
    return api.models.list().data[0].id


def is_right(call):
    assert call.id.startswith("call_")
    arguments = json.loads(call.function.arguments)
    if call.function.name == "now":
        return arguments == {}
    return (
        arguments.keys() == {"city", "days"} and arguments["city"] in ("Rome", "Oslo") and 1 <= arguments["days"] < 10
    )


def test_required_calls_stream_as_they_are_whole(api, model):
    options: dict[str, Any] = {
        "model": model, "messages": MESSAGES, "tools": [WEATHER, NOW], "tool_choice": "required", "seed": 5,
        "max_tokens": 300, "parallel_tool_calls": False,
    }  # fmt: skip
    (whole,) = api.chat.completions.create(**options).choices
    assert whole.finish_reason == "tool_calls"
    assert whole.message.content is None
    (call,) = whole.message.tool_calls
    assert is_right(call)
    with api.chat.completions.stream(**options) as stream:
        for _ in stream:
            pass
        streamed = stream.get_final_completion().choices[0]
    assert streamed.finish_reason == "tool_calls"
    assert [call.function.arguments for call in streamed.message.tool_calls] == [
        call.function.arguments for call in whole.message.tool_calls
    ]


def test_a_named_function_is_called_once_and_its_result_goes_back(api, model):
    name = "now"
    choice = {"type": "function", "function": {"name": name}}
    answer = api.chat.completions.create(
        model=model, messages=MESSAGES, tools=[WEATHER, NOW], tool_choice=choice, max_tokens=300
    )
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == name
    assert is_right(call)
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    again = api.chat.completions.create(
        model=model, messages=[*MESSAGES, answer.choices[0].message, result], tools=[WEATHER, NOW], max_tokens=4
    )
    assert again.choices[0].finish_reason == "length"


@pytest.mark.parametrize("choice", ["none", None])
def test_a_model_that_is_free_may_answer(api, model, choice):
    some = {} if choice is None else {"tool_choice": choice}
    answer = api.chat.completions.create(model=model, messages=MESSAGES, tools=[WEATHER], max_tokens=6, **some)
    assert len(answer.choices[0].message.content) > 0
    assert answer.choices[0].message.tool_calls is None
    assert (answer.usage.prompt_tokens < 50) == (choice == "none")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": []}, "tools"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"parallel_tool_calls": True}, "parallel_tool_calls"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tools": [WEATHER], "response_format": {"type": "json_object"}}, "response_format"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}],
             "tool_choice": "required"}, "tools",
        ),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": []}, {"role": "user"}]}, "messages.1"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "f", "arguments": "[1"}}]}]}, "messages",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(server, fields, param):
    answer = httpx.post(
        f"{server.url}/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 2} | fields, verify=False
    )
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


def parsed(pieces):
    message = AssistantMessage(["get_weather", "now"])
    deltas = [message.add(piece, is_last=False) for piece in pieces] + [message.add("", is_last=True)]
    assert "".join(delta.get("content", "") for delta in deltas) == (message.whole()["content"] or "")
    calls = [
        (call["function"]["name"], call["function"]["arguments"]) for call in message.whole().get("tool_calls", [])
    ]
    return message.whole()["content"], calls


WHOLE_CALL = ("get_weather", '{"city": "Rome {}]\\"", "days": [1]}')
TEXTS = {
    CALL: (None, [WHOLE_CALL]),
    f"I look.\n{CALL}\n{CALL}\n": ("I look.", [WHOLE_CALL, WHOLE_CALL]),
    f"{CALL} done": ("done", [WHOLE_CALL]),
    f"{CALL}\n all is  well ": ("all is  well ", [WHOLE_CALL]),
    f"{CALL} one two {CALL}": ("one two", [WHOLE_CALL, WHOLE_CALL]),
    '<tool_call>{"name":"now","parameters":{}}': (None, [("now", "{}")]),
    '<tool_call>{"name": "now", "arguments": {"a": 1': (None, [("now", '{"a": 1')]),
    f"{CALL[:-12]}\n{CALL}": (None, [WHOLE_CALL, WHOLE_CALL]),
    f"{CALL[:-12]}Now I wait.": ("Now I wait.", [WHOLE_CALL]),
    CALL[:-3]: (None, [WHOLE_CALL]),
    "a < b <tool and </tool_call> ": ("a < b <tool and </tool_call> ", []),
    "<tool_call>now()</tool_call>": ("<tool_call>now()</tool_call>", []),
    '<tool_call>{"name": "other", "arguments": {}}</tool_call> x': (
        '<tool_call>{"name": "other", "arguments": {}}</tool_call> x', [],
    ),
    "<tool_call>": ("<tool_call>", []),
    "  text  ": ("  text  ", []),
}  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
@settings(max_examples=12)
@given(data=st.data())
def test_calls_are_found_however_the_text_comes(text, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert parsed(pieces) == TEXTS[text]


def test_a_template_that_takes_tools_gets_them_and_another_gets_text():
    body = ChatRequest.model_validate(
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                *MESSAGES,
                {"role": "assistant", "content": None, "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "now", "arguments": '{"zone": "é"}'}}]},
                {"role": "tool", "tool_call_id": "c1", "content": "noon"},
            ],
            "tools": [WEATHER, NOW],
        }
    )  # fmt: skip
    functions = [tool.function for tool in body.tools]
    messages, tools = template_messages(body.messages, functions, takes_tools=True)
    assert [tool["function"]["name"] for tool in tools] == ["get_weather", "now"]
    assert messages[2]["tool_calls"][0]["function"] == {"name": "now", "arguments": {"zone": "é"}}
    assert messages[3] == {"role": "tool", "content": "noon", "tool_call_id": "c1"}
    messages, tools = template_messages(body.messages, functions, takes_tools=False)
    assert tools == []
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[0]["content"].startswith("Be brief.\n\n")
    assert "Look out of the window." in messages[0]["content"]
    assert messages[2]["content"] == '<tool_call>\n{"name": "now", "arguments": {"zone": "é"}}\n</tool_call>'
    assert messages[3]["content"] == "<tool_response>\nnoon\n</tool_response>"


@pytest.mark.parametrize("is_parallel", [True, False])
def test_several_calls_only_where_they_may_be(is_parallel):
    fields = {"messages": MESSAGES, "tools": [NOW], "tool_choice": "required", "parallel_tool_calls": is_parallel}
    body = ChatRequest.model_validate(fields)
    tokenizer = LetterTokenizer()
    constraint = calls_constraint(body, offered_functions(body))
    state = GrammarCompiler(tokenizer, vocab_size=VOCAB_SIZE).state(constraint, ending_ids={0})
    assert state.allowed().nonzero()[0].tolist() == [ord("<")]
    state.follow(tokenizer.encode('<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'))
    assert state.allowed().nonzero()[0].tolist() == ([0, ord("\n")] if is_parallel else [0])


def test_a_strict_function_is_enforced_where_the_model_is_free():
    strict = {"type": "function", "function": WEATHER["function"] | {"strict": True}}
    body = ChatRequest.model_validate({"messages": MESSAGES, "tools": [strict, NOW]})
    constraint = calls_constraint(body, offered_functions(body))
    tokenizer = LetterTokenizer()
    state = GrammarCompiler(tokenizer, vocab_size=VOCAB_SIZE).state(constraint, ending_ids={0})

    def next_letters(text):
        state.follow(tokenizer.encode(text))
        return set(state.allowed().nonzero()[0].tolist())

    assert next_letters("any text <tool") == set(range(VOCAB_SIZE))
    assert next_letters("any text <tool_call>") == {ord("\n")}
    assert next_letters('any text <tool_call>\n{"name": "') == {ord("g"), ord("n")}
    assert next_letters('<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>') == set(range(VOCAB_SIZE))
    assert next_letters('<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>\n<tool_call>') == {ord("\n")}
