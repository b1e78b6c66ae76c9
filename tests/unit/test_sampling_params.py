"""Sampling parameters: what is refused, and that the message says what to do."""

import math

import pytest

from forerun.core.errors import RequestError
from forerun.engine.sampling import SamplingParams


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -0.1}, r"temperature=-0\.1: must be >= 0; for greedy decoding set temperature=0"),
        ({"temperature": math.nan}, r"temperature=nan: must be a finite number"),
        ({"temperature": math.inf}, r"temperature=inf: must be a finite number"),
        ({"temperature": 1e-9}, r"temperature=1e-09: must be 0 or >= 0\.001"),
        ({"temperature": "hot"}, r"temperature='hot': must be a finite number"),
        ({"top_k": -1}, r"top_k=-1: must be >= 0; to keep every token set top_k=0"),
        ({"top_k": 1.5}, r"top_k=1\.5: must be a whole number"),
        ({"top_k": True}, r"top_k=True: must be a whole number"),
        ({"top_p": 0.0}, r"top_p=0\.0: must be in \(0, 1\]"),
        ({"top_p": 1.01}, r"top_p=1\.01: must be in \(0, 1\]"),
        ({"min_p": -0.1}, r"min_p=-0\.1: must be in \[0, 1\]"),
        ({"min_p": 1.1}, r"min_p=1\.1: must be in \[0, 1\]"),
        ({"repetition_penalty": 0.0}, r"repetition_penalty=0\.0: must be > 0; for no penalty"),
        ({"presence_penalty": math.inf}, r"presence_penalty=inf: must be a finite number"),
        ({"frequency_penalty": None}, r"frequency_penalty=None: must be a finite number"),
        ({"logit_bias": {-1: 1.0}}, r"logit_bias has the key -1: keys must be token ids"),
        ({"logit_bias": {"a": 1.0}}, r"logit_bias has the key 'a': keys must be token ids"),
        ({"logit_bias": {3: math.inf}}, r"logit_bias\[3\]=inf: must be finite, or -inf to ban"),
        ({"logit_bias": {3: math.nan}}, r"logit_bias\[3\]=nan: must be finite"),
        ({"seed": -1}, r"seed=-1: must be in \[0, 2\*\*64\)"),
        ({"seed": 2**64}, r"must be in \[0, 2\*\*64\)"),
        ({"stop": ("a", "")}, r"stop=\['a', ''\]: must hold non-empty strings"),
        ({"stop": "END"}, r"stop='END': must be a list; write \['END'\]"),
        ({"stop_token_ids": (-3,)}, r"stop_token_ids=\[-3\]: must hold token ids"),
        ({"stop_token_ids": 2}, r"stop_token_ids=2: must be a list; write \[2\]"),
        ({"min_tokens": -1}, r"min_tokens=-1: must be >= 0"),
        ({"max_tokens": 0}, r"max_tokens=0: must be >= 1, or None"),
        ({"min_tokens": 9, "max_tokens": 8}, r"min_tokens=9 with max_tokens=8: min_tokens must not be larger"),
        ({"logprobs": -1}, r"logprobs=-1: must be >= 0, or None"),
    ],
)
def test_bad_values_are_refused(fields, message):
    with pytest.raises(RequestError, match=message):
        SamplingParams(**fields)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (SamplingParams(logit_bias={10: 1.0}), r"logit_bias names token 10: this model's token ids are 0 to 9"),
        (SamplingParams(stop_token_ids=(11,)), r"stop_token_ids names token 11"),
        (SamplingParams(logit_bias=dict.fromkeys(range(10), -math.inf)), r"logit_bias bans every token"),
    ],
)
def test_ids_outside_the_vocabulary_are_refused(params, message):
    with pytest.raises(RequestError, match=message):
        params.check_vocabulary(10)


def test_limits_of_ranges_are_allowed():
    SamplingParams(temperature=0.001, top_p=1.0, min_p=1.0, min_tokens=8, max_tokens=8, logprobs=0, seed=2**64 - 1)
    SamplingParams(max_tokens=None, min_tokens=10_000, logit_bias={0: -math.inf})


def test_lists_become_tuples():
    params = SamplingParams(stop=["a"], stop_token_ids=[1, 2])  # type: ignore[arg-type]
    assert params.stop == ("a",)
    assert params.stop_token_ids == (1, 2)


def test_properties():
    assert SamplingParams(temperature=0).is_greedy
    assert not SamplingParams(temperature=0.7).is_greedy
    assert not SamplingParams(min_tokens=3, logit_bias={1: 1.0}).needs_history
    for name, value in (("repetition_penalty", 1.1), ("presence_penalty", -0.5), ("frequency_penalty", 0.1)):
        assert SamplingParams(**{name: value}).needs_history
