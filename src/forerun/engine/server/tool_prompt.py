"""How a model is told of tools, and how it writes a call: the prompt, and the grammar of what it may answer.

A call is a block, as the Hermes models write it, which many chat templates follow::

    <tool_call>
    {"name": "f", "arguments": {"x": 1}}
    </tool_call>

A model whose chat template takes tools is told by it. To others a system text of ours explains the blocks.
"""

import json
from collections.abc import Sequence
from typing import Any, Final

from forerun.core.errors import RequestError
from forerun.engine.constraint import Constraint
from forerun.engine.constraint_grammar import json_rule
from forerun.engine.server.schemas import ChatMessage, ChatRequest
from forerun.engine.server.tool_fields import FunctionDefinition, NamedToolChoice, ToolCall

BLOCK_BEGIN: Final = "<tool_call>"
BLOCK_END: Final = "</tool_call>"
_MOST_CALLS: Final = 16
_NO_ARGUMENTS: Final[dict[str, Any]] = {"type": "object", "properties": {}, "additionalProperties": False}
_SYSTEM_TEXT: Final = """\
You can call functions. To call one, answer with a block such as
<tool_call>
{"name": "NAME", "arguments": {"ARGUMENT": VALUE}}
</tool_call>
and with nothing else; to call several, write several blocks. What they return comes in <tool_response> blocks.
The functions, each with the JSON schema of its arguments:
"""


def offered_functions(body: ChatRequest) -> list[FunctionDefinition]:
    """Return the functions that the model may call; none under ``tool_choice="none"``.

    Raises:
        RequestError: Two have one name, or the choice names none of them, or contradicts another field.
    """
    functions = [tool.function for tool in body.tools or ()]
    names = [function.name for function in functions]
    if len(set(names)) < len(names):
        raise RequestError(f"tools: two functions have one name ({', '.join(names)[:200]}); give each its own")
    choice = body.tool_choice
    if not functions:
        if choice not in (None, "none"):
            raise RequestError("tool_choice: needs tools; give tools or leave it out")
        if body.parallel_tool_calls is not None:
            raise RequestError("parallel_tool_calls: needs tools; give tools or leave it out")
        return []
    if choice == "none":
        return []
    if isinstance(choice, NamedToolChoice) and choice.function.name not in names:
        raise RequestError(f"tool_choice: names {choice.function.name!r}; tools has {', '.join(names)[:200]}")
    has_format = body.structured_outputs is not None or (
        body.response_format is not None and body.response_format.type != "text"
    )
    if has_format:
        raise RequestError(
            "response_format: an answer can't be a call and of this format; leave out either, or set tool_choice to "
            "none"
        )
    return functions


def calls_constraint(body: ChatRequest, functions: Sequence[FunctionDefinition]) -> Constraint | None:
    """Return what the answer must be for the calls that are asked for; ``None``: the model is free.

    Args:
        body: The request.
        functions: Those on offer.

    Raises:
        RequestError: The schemas are too large.
    """
    if not functions:
        return None
    choice = body.tool_choice or "auto"
    is_parallel = body.parallel_tool_calls is not False and not isinstance(choice, NamedToolChoice)
    if isinstance(choice, NamedToolChoice):
        functions = [function for function in functions if function.name == choice.function.name]
    if choice == "auto":
        return _free_constraint(functions, is_parallel=is_parallel) if any(f.strict for f in functions) else None
    calls = f'start: call ("\\n" call){{0,{_MOST_CALLS - 1}}}' if is_parallel else "start: call"
    return _grammar([calls, f'call: "{BLOCK_BEGIN}" body'], functions)


def template_messages(
    messages: Sequence[ChatMessage], functions: Sequence[FunctionDefinition], *, takes_tools: bool
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return messages and tools for a chat template.

    Args:
        messages: Of the request.
        functions: Those on offer.
        takes_tools: Whether the template does; if not, calls, results and the functions become text.

    Raises:
        RequestError: The arguments of a call are no JSON object.
    """
    tools = [{"type": "function", "function": function.model_dump(exclude_none=True)} for function in functions]
    if takes_tools:
        return [_message(message) for message in messages], tools
    spelled = [_spelled(message) for message in messages]
    if functions:
        lines = [json.dumps(tool["function"], ensure_ascii=False) for tool in tools]
        text = _SYSTEM_TEXT + "\n".join(lines)
        if spelled[0]["role"] == "system":
            spelled[0] = {"role": "system", "content": f"{spelled[0]['content']}\n\n{text}"}
        else:
            spelled.insert(0, {"role": "system", "content": text})
    return spelled, []


def _grammar(rules: Sequence[str], functions: Sequence[FunctionDefinition]) -> Constraint:
    lines = [*rules, "body: " + " | ".join(f"body_{index}" for index in range(len(functions)))]
    for index, function in enumerate(functions):
        begin = json.dumps(f'\n{{"name": "{function.name}", "arguments": ')
        end = json.dumps(f"}}\n{BLOCK_END}")
        lines.append(f"body_{index}: {begin} arguments_{index} {end}")
        lines.append(f"arguments_{index}: {json_rule(_parameters(function))}")
    return Constraint.grammar("\n".join(lines))


def _free_constraint(functions: Sequence[FunctionDefinition], *, is_parallel: bool) -> Constraint:
    """Return a grammar of any text, in which a block that is begun must be a call."""
    rules = [
        f"start: (call){'*' if is_parallel else '?'} rest",
        "rest: TEXT",
        r"TEXT: /(.|\n)*/",
        f'begin[lazy]: TEXT "{BLOCK_BEGIN}"',
        "call: begin body",
    ]
    return _grammar(rules, functions)


def _parameters(function: FunctionDefinition) -> dict[str, Any]:
    schema = function.parameters or _NO_ARGUMENTS
    # The block holds an object, whatever a schema leaves open.
    return schema if "type" in schema or "$ref" in schema or "anyOf" in schema else schema | {"type": "object"}


def _message(message: ChatMessage) -> dict[str, Any]:
    role = "system" if message.role == "developer" else message.role
    content: dict[str, Any] = {"role": role, "content": message.text}
    if message.tool_calls:
        content["tool_calls"] = [
            {"id": call.id, "type": "function", "function": _called(call)} for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        content["tool_call_id"] = message.tool_call_id
    return content


def _spelled(message: ChatMessage) -> dict[str, Any]:
    plain = _message(message)
    if message.role == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message.text}\n</tool_response>"}
    blocks = [
        f"{BLOCK_BEGIN}\n{json.dumps(call['function'], ensure_ascii=False)}\n{BLOCK_END}"
        for call in plain.pop("tool_calls", ())
    ]
    return {"role": plain["role"], "content": "\n".join([*([message.text] if message.text else []), *blocks])}


def _called(call: ToolCall) -> dict[str, Any]:
    try:
        arguments = json.loads(call.function.arguments)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"messages: the arguments of tool call {call.id!r} are not JSON ({error})") from error
    if not isinstance(arguments, dict):
        raise RequestError(f"messages: the arguments of tool call {call.id!r} must be a JSON object")
    return {"name": call.function.name, "arguments": arguments}
