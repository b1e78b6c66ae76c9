"""Sampling parameters as arguments: one for each field of :class:`~forerun.engine.sampling.SamplingParams`."""

import argparse
from typing import Any, Final

from forerun.cli.config import attribute_docs
from forerun.core.errors import RequestError
from forerun.engine.sampling import SamplingParams

_DEST: Final = "sampling:"
_FLOATS: Final = (
    "temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
)  # fmt: skip
_INTS: Final = ("top_k", "seed", "min_tokens", "max_tokens", "logprobs")


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """Add an argument for every sampling parameter."""
    meanings = {name: text.replace("%", "%%") for name, text in attribute_docs(SamplingParams).items()}
    defaults = SamplingParams()
    group = parser.add_argument_group("sampling")

    def add(name: str, *, help_suffix: str = "", **options: Any) -> None:
        group.add_argument(
            "--" + name.replace("_", "-"),
            dest=_DEST + name,
            default=argparse.SUPPRESS,
            help=meanings[name] + help_suffix,
            **options,
        )

    for names, kind, metavar in ((_FLOATS, float, "X"), (_INTS, int, "N")):
        for name in names:
            default = getattr(defaults, name)
            suffix = "" if default is None else f" (default {default:g})"
            add(name, type=kind, metavar=metavar, help_suffix=suffix)
    add("logit_bias", type=_bias, action="append", metavar="ID=NATS", help_suffix=" May be given again.")
    add("stop", action="append", metavar="TEXT", help_suffix=" May be given again.")
    add("stop_token_ids", type=int, nargs="+", action="extend", metavar="ID")
    add("ignore_eos", action="store_true")


def sampling_params(args: argparse.Namespace) -> SamplingParams:
    """Return the sampling parameters that were given, with the defaults of those that were not.

    Args:
        args: Parsed by a parser with :func:`add_sampling_options`.

    Raises:
        RequestError: A value is out of range, two contradict each other, or a token is biased twice.
    """
    given = {name.removeprefix(_DEST): value for name, value in vars(args).items() if name.startswith(_DEST)}
    if "logit_bias" in given:
        pairs: list[tuple[int, float]] = given["logit_bias"]
        given["logit_bias"] = dict(pairs)
        if len(given["logit_bias"]) < len(pairs):
            raise RequestError(f"logit_bias={pairs}: names a token twice; give each token one bias")
    return SamplingParams(**given)


def _bias(text: str) -> tuple[int, float]:
    token_id, _, nats = text.partition("=")
    try:
        return int(token_id), float(nats)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: must be ID=NATS, a token id and a number, such as 42=-1.5, or 42=-inf to ban the token"
        ) from None
