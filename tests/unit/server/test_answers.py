"""Answers in the API's words, built from chunks: characters of several tokens, and the word for what a seed holds."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from forerun.engine.config import EngineConfig, SpeculativeConfig
from forerun.engine.outputs import StreamChunk, TokenLogprob
from forerun.engine.server.answers import Answer
from forerun.engine.server.choice_plan import ChoicePlan
from forerun.engine.server.engine_thread import Delivery
from forerun.engine.server.fingerprint import fingerprint

BYTES = (b"a", b"\xe2\x82", b"\xac", b"b", b"")


def answer():
    call = SimpleNamespace(requests=[SimpleNamespace(number=0, prompt_ids=(0,))], started_s=0.0)
    resources = SimpleNamespace(tokenizer=SimpleNamespace(token_bytes=BYTES.__getitem__))
    return Answer(
        "text", call, resources, model="m", fingerprint="fp", reports_logprobs=True, returns_tokens=False,
        plan=ChoicePlan(),
    )  # fmt: skip


def delivery(text, tokens, reason=None):
    return Delivery(
        chunk=StreamChunk(
            index=0,
            text=text,
            token_ids=tokens,
            origins=("target",) * len(tokens),
            logprobs=tuple(
                TokenLogprob(token_id=token, logprob_nats=-1.0, top=((1, -1.0), (2, -2.0))) for token in tokens
            ),
            finish_reason=reason,
        ),
        time_s=0.0,
    )


@pytest.mark.parametrize("cut", range(5))
def test_tokens_lie_where_their_characters_begin_however_they_come(cut):
    """The euro sign takes two tokens: the second begins no later than the first."""
    tokens, some = (0, 1, 2, 3, 4), answer()
    chunks = [some.add(0, delivery("", tokens[:cut])), some.add(0, delivery("a\u20acb", tokens[cut:], "stop"))]
    logprobs = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk is not None]
    assert [offset for part in logprobs for offset in part["text_offset"]] == [0, 1, 1, 2, 3]
    assert [token for part in logprobs for token in part["tokens"]] == ["a", "bytes:\\xe2\\x82", "bytes:\\xac", "b", ""]
    whole = some.whole()["choices"][0]["logprobs"]
    assert whole["text_offset"] == [0, 1, 1, 2, 3]
    assert all(len(top) == 2 for top in whole["top_logprobs"]), "tokens of no whole character keep apart"


def test_a_fingerprint_changes_with_what_changes_texts_and_not_with_the_method():
    config = EngineConfig()
    others = [
        replace(config, dtype="float32"),
        replace(config, target="another"),
        replace(config, speculative=SpeculativeConfig(verification="rejection")),
    ]
    assert len({fingerprint(one) for one in (config, *others)}) == 4
    assert fingerprint(replace(config, method="none", max_num_seqs=9)) == fingerprint(config)
