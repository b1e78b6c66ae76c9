"""Conversations as users give them to an engine: one, or several side by side."""

import json
from pathlib import Path

import pytest

from forerun import LLM, SamplingParams
from forerun.core.errors import RequestError

FIRST = [{"role": "user", "content": "The sea"}]
SECOND = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "abc"}]
TEMPLATE = """{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}|"""


@pytest.fixture
def llm(model, tmp_path):
    """An engine whose model has a chat template."""
    for file in Path(model).iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    with LLM(str(tmp_path), method="none", draft=None, dtype="float32", max_model_len=96, max_num_seqs=2) as llm:
        yield llm


def test_one_conversation_has_one_reply_and_several_a_list(llm):
    params = [SamplingParams(temperature=0, max_tokens=6), SamplingParams(temperature=0, max_tokens=9)]
    prompts = ["<user>The sea|", "<system>Be short.<user>abc|"]
    expected = [completion.token_ids for completion in llm.generate(prompts, params)]
    assert [len(ids) for ids in expected] == [6, 9]
    assert llm.chat(FIRST, params[0]).token_ids == expected[0]
    assert [reply.token_ids for reply in llm.chat([FIRST, SECOND], params)] == expected
    assert [len(reply.token_ids) for reply in llm.chat([SECOND], params[0])] == [6]


def test_what_is_no_conversation_is_refused(llm):
    for messages in ([FIRST, ["abc"]], [[FIRST]], ["abc"], []):
        with pytest.raises(RequestError, match=r"give (a list of dicts|at least one message)"):
            llm.chat(messages)
    with pytest.raises(RequestError):
        llm.chat([FIRST, SECOND], [SamplingParams()] * 3)
