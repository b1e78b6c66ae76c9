"""Compiles constraints for one vocabulary, within limits of size and work, and keeps what it has compiled.

The grammars are those of llguidance (Earley parsing over lexers made of derivatives of regular expressions): it has no
costly preparation, masks in tens of microseconds, and goes back over tokens, which drafts need.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from forerun.core.dependencies import import_optional
from forerun.core.errors import RequestError
from forerun.engine.constraint import Constraint
from forerun.engine.constraint_state import GrammarState, error_text

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_NUM_KEPT: Final = 32
_MESSAGE_CHARACTERS: Final = 300
_LIMITS: Final = {
    "initial_lexer_fuel": 300_000,
    "max_grammar_size": 50_000,
    "max_lexer_states": 16_384,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
}
"""Of one grammar: work and size at compilation (a unit of fuel may leave 80 bytes), memory (1 to 2 kB a lexer state),
and work for one mask (14 units of fuel or 20 items take about a microsecond)."""
_FORCED_CHARACTERS: Final = 256
"""Of a stretch of text that is forced, so many are cut into tokens at a time: only the first token is needed."""
_JSON_OPTIONS: Final = {"whitespace_pattern": r" |\n[ \t]{0,16}"}
"""Space between the tokens of JSON: none, one, or a new line with its indent. Without a bound a model that is unsure
fills its answer with white space."""


class TextTokenizer(Protocol):
    """What a grammar needs of a tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Cut a text into token ids."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of a token; none for one without text."""
        ...


class GrammarCompiler:
    """Constraints of requests to one model. Safe to use from several threads.

    Args:
        tokenizer: The target's.
        vocab_size: Size of the target's vocabulary.
    """

    def __init__(self, tokenizer: TextTokenizer, *, vocab_size: int) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._lock = threading.Lock()
        self._vocabulary: LLTokenizer | None = None
        self._compiled: OrderedDict[Constraint, LLMatcher] = OrderedDict()

    def compile(self, constraint: Constraint) -> None:
        """Compile a constraint, or find that it was: a request that comes with it then begins at once.

        Raises:
            RequestError: It does not compile, uses what is not supported, or is too large.
            MissingDependencyError: llguidance is not installed.
        """
        self._matcher(constraint)

    def state(self, constraint: Constraint, *, ending_ids: Collection[int]) -> GrammarState:
        """Return a constraint at the start of a text.

        Args:
            constraint: What the output must be.
            ending_ids: Tokens that end the request; at least one.

        Raises:
            RequestError: As :meth:`compile`; or nothing can end the request.
            MissingDependencyError: llguidance is not installed.
        """
        if not ending_ids:
            raise RequestError(
                "a constraint needs a token that ends the output, and there is none: leave ignore_eos off, or set "
                "stop_token_ids"
            )
        return GrammarState(self._matcher(constraint), vocab_size=self._vocab_size, ending_ids=ending_ids)

    def _matcher(self, constraint: Constraint) -> "LLMatcher":
        with self._lock:
            found = self._compiled.get(constraint)
            if found is not None:
                self._compiled.move_to_end(constraint)
                return found
        library: Any = import_optional("llguidance", extra="server", purpose="constrained output")
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = _vocabulary(library, self._tokenizer, self._vocab_size)
        limits = library.LLParserLimits(**_LIMITS, verbose_errors=False)
        matcher: LLMatcher = library.LLMatcher(self._vocabulary, _lark(library, constraint), log_level=0, limits=limits)
        if matcher.is_error():
            reason = error_text(matcher)[:_MESSAGE_CHARACTERS]
            raise RequestError(f"{constraint.kind}: does not compile ({reason}); mend or simplify it")
        probes = [matcher.deep_copy() for _ in range(2)]  # what the first has used up counts for the second
        for probe in probes:
            probe.compute_bitmask()
        failed = next((probe for probe in probes if probe.is_error()), None)
        if failed is not None:
            reason = error_text(failed)[:_MESSAGE_CHARACTERS]
            raise RequestError(f"{constraint.kind}: allows no first token ({reason}); widen or simplify it")
        with self._lock:
            self._compiled[constraint] = matcher
            if len(self._compiled) > _NUM_KEPT:
                self._compiled.popitem(last=False)
        return matcher


def json_rule(schema: Mapping[str, Any]) -> str:
    """Return what stands for a JSON schema in a Lark grammar.

    Args:
        schema: The schema as JSON types.
    """
    return f"%json {json.dumps({**schema, 'x-guidance': _JSON_OPTIONS})}"


def _lark(library: Any, constraint: Constraint) -> str:
    text = constraint.text
    if constraint.kind == "grammar":
        return text
    if constraint.kind == "json_schema":
        return f"start: {json_rule(json.loads(text))}"
    if constraint.kind == "regex":
        return f"start: /{library.regex_to_lark(text)}/"
    return "start: " + " | ".join(json.dumps(some, ensure_ascii=False) for some in json.loads(text))


def _vocabulary(library: Any, tokenizer: TextTokenizer, vocab_size: int) -> "LLTokenizer":
    """Return the vocabulary as the library takes it.

    Its end of text is a token of its own behind the last: which tokens end a request is the request's matter.
    """
    adapter = _Adapter(tokenizer, vocab_size)
    vocabulary = library.LLTokenizer(library.TokenizerWrapper(adapter))
    adapter.greedy = vocabulary.greedy_tokenize
    return vocabulary


class _Adapter:
    """The tokenizer in the shape that the library asks for."""

    bos_token_id = None

    def __init__(self, tokenizer: TextTokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self.tokens = [*(tokenizer.token_bytes(token_id) for token_id in range(vocab_size)), b""]
        self.eos_token_id = vocab_size
        self.special_token_ids: Sequence[int] = ()
        self.greedy: Any = None

    def __call__(self, text: str | bytes) -> list[int]:
        """Return the tokens with which the model itself would write a text that the grammar forces.

        Where the tokenizer adds to the text or takes special tokens out of it, they are those of the longest matches.
        """
        text = (text if isinstance(text, str) else text.decode())[:_FORCED_CHARACTERS]
        ids = self._tokenizer.encode(text)
        if b"".join(self.tokens[token_id] for token_id in ids) == text.encode():
            return ids
        return self.greedy(text)
