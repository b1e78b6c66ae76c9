"""Text to token ids and back, over the ``tokenizers`` library."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

from tokenizers import Tokenizer as Backend

from forerun.core.errors import ModelLoadError, RequestError
from forerun.models.chat_template import ChatTemplate

_BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_PADDING = re.compile(r"\[PAD\d+\]")


def byte_alphabet() -> dict[int, str]:
    """Return the printable character that byte-level BPE writes for each byte (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in set(printable))
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + index) for index, byte in enumerate(others)}


class Tokenizer:
    """A model's vocabulary and the rules that cut text into it.

    Args:
        backend: The tokenizer proper.
        eos_ids: Ids that end a text.
        chat_template: Jinja source, or ``None`` for a model without one.
        special_tokens: Named tokens for the chat template, such as ``{"bos_token": "<s>"}``.

    Raises:
        ModelLoadError: The chat template is not valid.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        eos_ids: Iterable[int] = (),
        chat_template: str | None = None,
        special_tokens: Mapping[str, str] | None = None,
    ) -> None:
        self._backend = backend
        self.eos_ids = frozenset(eos_ids)
        self.special_tokens = dict(special_tokens or {})
        self.chat_template = chat_template
        self._compiled_template = None if chat_template is None else ChatTemplate(chat_template, self.special_tokens)
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(index for index, token in added.items() if token.special)
        self._token_bytes: dict[int, bytes] = {}
        self._added_text = {index: token.content for index, token in added.items()}

    @property
    def takes_tools(self) -> bool:
        """Whether the chat template, if there is one, knows of tools."""
        return self._compiled_template is not None and self._compiled_template.takes_tools

    @cached_property
    def vocab(self) -> dict[str, int]:
        """Every token, as the tokenizer spells it, with its id."""
        return self._backend.get_vocab(with_added_tokens=True)

    @property
    def num_tokens(self) -> int:
        """One more than the highest id; a model's embedding may have padding rows beyond it."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Cut ``text`` into token ids; special tokens spelled out in it are recognised.

        Args:
            text: Any Unicode text.
            add_special_tokens: Whether to add what the model expects around a text, such as a leading BOS.
        """
        return self._backend.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of ``ids``; bytes that are no whole character become U+FFFD."""
        return self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the UTF-8 bytes that a token contributes to a text; none for a special token or an unused id.

        In a vocabulary with spaces as word marks (SentencePiece) the first token of a text has a leading space here
        that :meth:`decode` leaves out.
        """
        found = self._token_bytes.get(token_id)
        if found is None:
            found = self._token_bytes[token_id] = self._find_token_bytes(token_id)
        return found

    def _find_token_bytes(self, token_id: int) -> bytes:
        if token_id in self.special_ids:
            return b""
        if token_id in self._added_text:
            return self._added_text[token_id].encode()
        token = self._backend.id_to_token(token_id)
        return b"" if token is None else self._bytes_of(token)

    def vocab_digest(self) -> str:
        """Return a hash of what every id stands for, so that two models' vocabularies compare by content.

        Padding at the tail (unused ids, ``[PAD…]`` rows) does not count, nor does which file format it came from.
        """
        return self._vocab_digest

    @cached_property
    def _vocab_digest(self) -> str:
        by_id = {index: token for token, index in self.vocab.items() if not _PADDING.fullmatch(token)}
        return hashlib.sha256(json.dumps(sorted(by_id.items())).encode()).hexdigest()

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] = (),
        variables: Mapping[str, object] | None = None,
    ) -> list[int]:
        """Return the prompt ids of a conversation.

        Args:
            messages: Dicts with ``role`` and ``content``, oldest first.
            add_generation_prompt: Whether to end with the opening of the assistant's turn.
            tools: As OpenAI's API describes them, where :attr:`takes_tools`.
            variables: Values for variables of the template, such as ``{"enable_thinking": False}``.

        Raises:
            RequestError: The model has no chat template (``chat_template`` is ``None``), it refuses these messages, or
                it lacks a variable.
        """
        if self._compiled_template is None:
            raise RequestError(
                "this model has no chat template; write the prompt yourself and use generate(), or load a model "
                "tuned for chat"
            )
        return self.encode(
            self._compiled_template.render(
                messages, add_generation_prompt=add_generation_prompt, tools=tools, variables=variables
            )
        )

    def to_json(self) -> str:
        """Return the content of a ``tokenizer.json`` file."""
        return self._backend.to_str(pretty=False)

    @cached_property
    def _byte_of_character(self) -> dict[str, int] | None:
        """Inverse of the byte alphabet; ``None`` for a vocabulary that is not byte-level."""
        return {text: byte for byte, text in byte_alphabet().items()} if _is_byte_level(self._backend) else None

    def _bytes_of(self, token: str) -> bytes:
        table = self._byte_of_character
        if table is not None:
            is_spelled_in_bytes = all(character in table for character in token)
            return bytes(table[character] for character in token) if is_spelled_in_bytes else token.encode()
        if match := _BYTE_FALLBACK.fullmatch(token):
            return bytes([int(match[1], 16)])
        return token.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()


def _is_byte_level(backend: Backend) -> bool:
    decoder = json.loads(backend.to_str())["decoder"] or {}
    return "ByteLevel" in {decoder.get("type"), *(part["type"] for part in decoder.get("decoders", ()))}


def load_tokenizer_json(content: str, source: str) -> Backend:
    """Parse the content of a ``tokenizer.json``.

    Args:
        content: The JSON text.
        source: Where it came from, for the message.

    Raises:
        ModelLoadError: The content is no tokenizer.
    """
    try:
        return Backend.from_str(content)
    except Exception as error:
        raise ModelLoadError(f"{source}: not a valid tokenizer.json ({error}); download it again") from error
