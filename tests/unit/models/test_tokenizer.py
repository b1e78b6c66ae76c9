"""Text to ids and back, bytes of tokens, digests and chat templates, on tiny vocabularies and on SmolLM2's."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from forerun.core.errors import ModelLoadError, RequestError
from forerun.models.chat_template import ChatTemplate
from forerun.models.load import load_checkpoint
from forerun.models.tokenizer import Tokenizer, byte_alphabet

TEXTS = (
    "",
    " leading and trailing ",
    "Tabs\tand\r\nline\n\n\nbreaks  and   runs    of spaces",
    "It's 12,345.67 in 2024; they'll pay $9.99 (or 3½)",
    "naïve café, Straße, Ελληνικά, Русский, עברית, العربية, हिन्दी",
    "漢字とかな、한국어, ไทย",
    "👩‍👩‍👧 🏳️‍🌈 e\u0301 \u200b\ufeff\u2028",
    "def f(x):\n    return {'a': x ** 2}  # comment\n",
    r"\frac{\partial u}{\partial t} = \nabla^2 u",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" * 20,
)
# Bytes that SmolLM2's published vocabulary has no token for, and so can't be written in it.
ABSENT_BYTES = {0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xC0, 0xC1, 0xF1, 0xF2, *range(0xF5, 0x100)}


@pytest.fixture(scope="module")
def smollm2() -> Tokenizer:
    return load_checkpoint("default").tokenizer


def test_the_byte_alphabet_is_one_to_one():
    alphabet = byte_alphabet()
    assert sorted(alphabet) == list(range(256))
    assert len(set(alphabet.values())) == 256
    assert alphabet[ord("a")] == "a"
    assert alphabet[ord(" ")] == "Ġ"
    assert not any(character.isspace() for character in alphabet.values())


@pytest.mark.model
@pytest.mark.parametrize("text", TEXTS)
def test_texts_come_back(smollm2, text):
    ids = smollm2.encode(text)
    assert smollm2.decode(ids) == text
    assert b"".join(map(smollm2.token_bytes, ids)).decode() == text


@pytest.mark.model
@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_any_text_that_the_vocabulary_can_spell_comes_back(smollm2, text):
    spellable = not ABSENT_BYTES.intersection(text.encode()) and "<|" not in text
    ids = smollm2.encode(text)
    assert all(0 <= token_id < smollm2.num_tokens for token_id in ids)
    if spellable:
        assert smollm2.decode(ids) == text
        assert b"".join(map(smollm2.token_bytes, ids)) == text.encode()


@pytest.mark.model
def test_digits_stand_alone_as_smollm2_was_trained(smollm2):
    """Digits are cut off first, so the two spaces before them stay one token."""
    pieces = [smollm2.token_bytes(token_id) for token_id in smollm2.encode("in  1234")]
    assert pieces == [b"in", b"  ", b"1", b"2", b"3", b"4"]


@pytest.mark.model
def test_special_tokens_have_no_bytes_and_are_recognised(smollm2):
    assert smollm2.encode("<|im_start|>user<|im_end|>")[::2] == [1, 2]
    assert smollm2.token_bytes(1) == smollm2.token_bytes(2) == b""
    assert smollm2.decode([1, 2]) == ""
    assert smollm2.decode([1, 2], skip_special_tokens=False) == "<|im_start|><|im_end|>"
    assert {1, 2} <= smollm2.special_ids
    assert smollm2.eos_ids == {0, 2}


@pytest.mark.model
def test_the_default_chat_prompt(smollm2):
    prompt = smollm2.apply_chat_template([{"role": "user", "content": "What is the capital of France?"}])
    assert smollm2.decode(prompt, skip_special_tokens=False) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    closed = smollm2.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=False)
    assert smollm2.decode(closed, skip_special_tokens=False).endswith("Hi<|im_end|>\n")


def test_ids_beyond_the_vocabulary_have_no_bytes(write_gguf):
    tokenizer = load_checkpoint(write_gguf()).tokenizer
    assert tokenizer.token_bytes(tokenizer.num_tokens + 5) == b""


def test_merges_are_applied(write_gguf):
    tokenizer = load_checkpoint(write_gguf()).tokenizer
    pieces = [tokenizer.token_bytes(token_id) for token_id in tokenizer.encode("the band and the hand")]
    assert pieces == [b"the", b" ", b"b", b"and", b" ", b"and", b" the", b" ", b"h", b"and"]


def test_added_words_are_whole_and_have_bytes(write_gguf):
    """A token of type 4 (user-defined), such as <think>, is matched whole but is text."""
    checkpoint = load_checkpoint(write_gguf())
    tokens = [token for token, _ in sorted(checkpoint.tokenizer.vocab.items(), key=lambda item: item[1])]
    tokens[-1] = "<think>"
    types = [3, 3, 3] + [1] * (len(tokens) - 4) + [4]
    merges = ["t h", "th e", "Ġ the", "a n"]
    metadata = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
    }
    tokenizer = load_checkpoint(write_gguf(metadata=metadata)).tokenizer
    last = len(tokens) - 1
    assert tokenizer.encode("a<think>")[-1] == last
    assert tokenizer.token_bytes(last) == b"<think>"
    assert tokenizer.decode([last]) == "<think>"


@pytest.mark.parametrize(("pre", "adds"), [("smollm", False), ("llama-bpe", True)])
def test_a_leading_bos_where_the_model_expects_one(write_gguf, pre, adds):
    metadata: dict[str, object] = {"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.pre": pre}
    tokenizer = load_checkpoint(write_gguf(metadata=metadata)).tokenizer
    text = tokenizer.encode("the")
    assert tokenizer.encode("the", add_special_tokens=True) == ([1, *text] if adds else text)
    metadata["tokenizer.ggml.add_bos_token"] = not adds
    tokenizer = load_checkpoint(write_gguf(metadata=metadata)).tokenizer
    assert tokenizer.encode("the", add_special_tokens=True) == (text if adds else [1, *text])


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", ["It", "'s", " 1234", "\n\n", " end"]),
        ("default", ["It", "'s", " 1234", "\n\n", " end"]),
        ("smollm", ["It", "'s", " ", "1", "2", "3", "4", "\n\n", " end"]),
        ("llama-bpe", ["It", "'s", " ", "123", "4", "\n\n", " end"]),
        ("qwen2", ["It", "'s", " ", "1", "2", "3", "4", "\n\n", " end"]),
    ],
)
def test_how_each_kind_cuts_text(write_gguf, pre, pieces):
    tokenizer = load_checkpoint(write_gguf(metadata={"tokenizer.ggml.pre": pre})).tokenizer
    backend = Backend.from_str(tokenizer.to_json())
    cut = backend.pre_tokenizer.pre_tokenize_str("It's 1234\n\n end")
    alphabet = {text: byte for byte, text in byte_alphabet().items()}
    assert [bytes(alphabet[character] for character in piece).decode() for piece, _ in cut] == pieces


def test_digests_compare_content_and_ignore_padding(write_gguf):
    def digest(**metadata: object) -> str:
        return load_checkpoint(write_gguf(metadata=metadata)).tokenizer.vocab_digest()

    checkpoint = load_checkpoint(write_gguf())
    tokens = [token for token, _ in sorted(checkpoint.tokenizer.vocab.items(), key=lambda item: item[1])]
    swapped = [*tokens[:-2], tokens[-1], tokens[-2]]
    assert digest() == checkpoint.tokenizer.vocab_digest()
    assert digest(**{"tokenizer.ggml.pre": "qwen2"}) == digest()
    assert digest(**{"tokenizer.ggml.tokens": swapped}) != digest()

    padded = Backend(models.BPE(vocab={"a": 0, "b": 1, "[PAD2]": 2}, merges=[]))
    plain = Backend(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    assert Tokenizer(padded).vocab_digest() == Tokenizer(plain).vocab_digest()


def test_bytes_of_a_sentencepiece_vocabulary():
    backend = Backend(models.BPE(vocab={"▁the": 0, "<0x0A>": 1, "é": 2}, merges=[]))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = Tokenizer(backend)
    assert [tokenizer.token_bytes(token_id) for token_id in range(3)] == [b" the", b"\n", "é".encode()]


def test_a_model_without_a_template_says_so(write_gguf):
    tokenizer = load_checkpoint(write_gguf(without=("tokenizer.chat_template",))).tokenizer
    assert tokenizer.chat_template is None
    with pytest.raises(RequestError, match="no chat template"):
        tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}])


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0].content + 1 }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    ],
    ids=["refuses", "fails", "mutates", "escapes"],
)
def test_a_template_that_fails_is_a_request_error(template):
    tokenizer = Tokenizer(Backend(models.BPE()), chat_template=template)
    with pytest.raises(RequestError, match="chat template refused"):
        tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}])


def test_templates_may_use_what_published_ones_use():
    template = (
        "{%- for m in messages -%}\n    {%- if loop.index > 1 -%}{%- break -%}{%- endif -%}\n"
        "{{ bos_token }}{{ m | tojson }}{{ strftime_now('%%') }}\n{%- endfor -%}"
    )
    text = ChatTemplate(template, {"bos_token": "<s>"}).render(
        [{"role": "é"}, {"role": "u"}], add_generation_prompt=False
    )
    assert text == '<s>{"role": "é"}%'


def test_what_else_a_template_reads_can_be_set_and_nothing_other():
    loop = "{% for m in messages %}{{ m.content }}{% endfor %}"
    template = ChatTemplate(
        "{{ bos_token }}" + loop + "{% if not enable_thinking %} at once{% endif %}", {"bos_token": "<s>"}
    )
    assert template.variables == {"enable_thinking"}
    messages = [{"role": "user", "content": "Hi"}]
    rendered = [
        template.render(messages, add_generation_prompt=True, variables={"enable_thinking": wants})
        for wants in (True, False)
    ]
    assert rendered == ["<s>Hi", "<s>Hi at once"]
    for name in ("messages", "bos_token", "range", "other"):
        with pytest.raises(RequestError, match=f"chat_template_kwargs.{name}: .* it has enable_thinking"):
            template.render(messages, add_generation_prompt=True, variables={name: "x"})


def test_an_invalid_template_is_a_load_error():
    with pytest.raises(ModelLoadError, match="not valid Jinja"):
        Tokenizer(Backend(models.BPE()), chat_template="{% endfor %}")
