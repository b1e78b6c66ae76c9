"""What the server counts, for Prometheus: how long clients wait, and what speculation is worth."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

if TYPE_CHECKING:
    from forerun.engine.server.engine_thread import EngineThread  # loads models' code, which a front does without

_TTFT_BUCKETS_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_ITL_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
_REQUEST_BUCKETS_S: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class ServerMetrics:
    """A registry of its own, so that two servers in one process don't mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.num_prompt_tokens = 0
        self._watched: EngineThread | None = None
        self._ttft = Histogram(
            "forerun_time_to_first_token_seconds",
            "From a call's arrival to a completion's first token.",
            buckets=_TTFT_BUCKETS_S,
            registry=self.registry,
        )
        self._itl = Histogram(
            "forerun_inter_token_latency_seconds",
            "Time per token after the first: a round's time over the tokens it decided.",
            buckets=_ITL_BUCKETS_S,
            registry=self.registry,
        )
        self._latency = Histogram(
            "forerun_request_seconds",
            "Time of HTTP requests to the API.",
            labelnames=("path",),
            buckets=_REQUEST_BUCKETS_S,
            registry=self.registry,
        )
        self._responses = Counter(
            "forerun_http_responses",
            "HTTP responses.",
            labelnames=("path", "status"),
            registry=self.registry,
        )
        self.registry.register(self)  # pyright: ignore[reportArgumentType] (a collector is what has collect())

    def watch(self, thread: "EngineThread") -> None:
        """Report an engine's state and counters."""
        self._watched = thread

    def observe_tokens(self, *, num_tokens: int, wait_s: float, is_first: bool) -> None:
        """Learn that a completion got tokens, and how long after its last ones, or after its arrival."""
        if is_first:
            self._ttft.observe(wait_s)
            return
        for _ in range(num_tokens):
            self._itl.observe(wait_s / num_tokens)

    def observe_response(self, *, path: str, status: int, duration_s: float) -> None:
        """Learn of a response; ``path`` is a route, never what a client made up."""
        self._responses.labels(path=path, status=str(status)).inc()
        self._latency.labels(path=path).observe(duration_s)

    def text(self) -> bytes:
        """Return everything in Prometheus's text format."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """Yield what is read off the engine when it is asked for."""
        thread = self._watched
        if thread is None:
            return
        state, counters = thread.state, thread.counters
        gauges = {
            "forerun_requests_running": ("Completions that hold a sequence of the cache.", state.num_running),
            "forerun_requests_waiting": ("Completions that wait for one.", state.num_waiting),
            "forerun_kv_cache_usage_ratio": ("Share of the cache that running requests hold.", state.cache_usage),
            "forerun_engine_up": ("Whether the engine can decode.", int(thread.is_alive)),
        }
        for name, (meaning, value) in gauges.items():
            yield GaugeMetricFamily(name, meaning, value=value)
        counts = {
            "forerun_prompt_tokens": ("Prompt tokens taken.", self.num_prompt_tokens),
            "forerun_prefilled_tokens": ("Prompt tokens that ran; the rest was cached.", counters.num_prefilled),
            "forerun_preemptions": ("Times that a request was put aside, to come back later.", thread.num_preempted),
            "forerun_generated_tokens": ("Tokens decided.", counters.num_tokens),
            "forerun_target_rounds": ("Passes of the target that verified or decoded.", counters.num_rounds),
            "forerun_target_verifications": ("Requests verified, over all rounds.", counters.num_verifications),
            "forerun_draft_tokens_proposed": ("Draft tokens verified.", counters.num_proposed),
            "forerun_draft_tokens_accepted": ("Of them, accepted.", counters.num_accepted),
            "forerun_draft_tokens_wasted": ("Of them, not accepted.", counters.num_proposed - counters.num_accepted),
            "forerun_draft_tokens_prepared": ("Tokens drafted ahead for outcomes (SSD).", counters.num_prepared),
            "forerun_draft_tokens_unused": (
                "Of them, not verified: the outcome did not come, or so many were not asked for.",
                counters.num_unused,
            ),
            "forerun_outcome_look_ups": ("Outcomes looked for in the speculation cache.", counters.num_look_ups),
            "forerun_outcome_hits": ("Of them, predicted.", counters.num_hits),
            "forerun_prefill_seconds": ("Time of prefill.", counters.prefill_s),
            "forerun_decode_seconds": ("Time of rounds.", counters.decode_s),
            "forerun_target_seconds": ("Of it, time of the target's passes.", counters.forward_s),
        }
        for name, (meaning, value) in counts.items():
            yield CounterMetricFamily(name, meaning, value=value)
        methods = GaugeMetricFamily("forerun_requests_by_method", "Completions on each method now.", labels=["method"])
        for method, number in state.methods.items():
            methods.add_metric([method], number)
        yield methods
        yield from self._acceptance(dict(counters.accepted_counts), dict(counters.proposed_counts))

    @staticmethod
    def _acceptance(accepted: dict[int, int], proposed: dict[int, int]) -> Iterator[Metric]:
        """Yield how often the draft token at each place was proposed and accepted."""
        families = (
            (proposed, "forerun_draft_position_proposed", "Drafts that had a token at this place."),
            (accepted, "forerun_draft_position_accepted", "Drafts accepted up to this place."),
        )
        longest = max(proposed, default=0)
        for counts, name, meaning in families:
            family = CounterMetricFamily(name, meaning, labels=["position"])
            for place in range(1, longest + 1):
                family.add_metric([str(place)], sum(number for length, number in counts.items() if length >= place))
            yield family
