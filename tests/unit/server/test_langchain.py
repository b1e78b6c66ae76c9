"""LangChain's OpenAI client: structured output and tools in one go."""

from typing import Literal

import httpx
import pytest
from pydantic import BaseModel
from simulated.serving import SimulatedResources, running_server

pytest.importorskip("llguidance")


class Sea(BaseModel):
    """What the sea is like."""

    mood: Literal["calm", "wild"]
    waves: list[bool]


def test_structured_output_and_a_tool():
    langchain_openai = pytest.importorskip("langchain_openai")  # here: importing it takes seconds
    with running_server(SimulatedResources(capacity=2048)) as server, httpx.Client(verify=False) as http:
        name = http.get(f"{server.url}/v1/models").json()["data"][0]["id"]
        model = langchain_openai.ChatOpenAI(
            base_url=f"{server.url}/v1",
            api_key="none",
            model=name,
            temperature=1,
            seed=1,
            max_tokens=400,
            max_retries=0,
            http_client=http,
        )
        assert isinstance(model.with_structured_output(Sea, method="json_schema").invoke("How is it?"), Sea)
        (call, *_) = model.bind_tools([Sea], tool_choice="required").invoke("How is it?").tool_calls
        assert call["name"] == "Sea"
        assert isinstance(Sea(**call["args"]), Sea)
        text = "".join(part.content for part in model.stream("How is it?", max_tokens=12))
        assert len(text) == 12
