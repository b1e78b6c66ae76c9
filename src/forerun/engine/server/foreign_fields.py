"""Fields that other servers and older clients know, and what says the same here."""

from typing import Final

_INSTEAD: Final = {
    "allowed_token_ids": "structured_outputs, or logit_bias",
    "bad_words": "logit_bias",
    "cache_prompt": "nothing: prefixes are reused",
    "function_call": "tool_choice",
    "functions": "tools",
    "grammar": "structured_outputs",
    "guided_choice": "structured_outputs.choice",
    "guided_grammar": "structured_outputs",
    "guided_json": "structured_outputs.json",
    "guided_regex": "structured_outputs.regex",
    "json_schema": "response_format",
    "max_new_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "n_predict": "max_tokens",
    "n_probs": "logprobs",
    "prompt_cache_key": "cache_salt",
    "repeat_penalty": "repetition_penalty",
    "return_token_ids": "return_tokens",
    "return_tokens_as_token_ids": "return_tokens",
    "safety_identifier": "user",
    "stop_sequences": "stop",
}
"""By OpenAI's API and its older forms, vLLM's, llama.cpp's and TGI's servers."""


def instead_of(name: str) -> str:
    """Return what to use instead of a field that is not known here, in brackets; empty where there is nothing."""
    other = _INSTEAD.get(name)
    return "" if other is None else f" (use {other})"
