"""Prometheus metrics of this process. None is labelled by tenant: there may be thousands."""

from collections.abc import Mapping

from prometheus_client import Counter, Histogram, disable_created_metrics

disable_created_metrics()  # type: ignore[no-untyped-call]
_FAST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

requests = Counter(
    "membank_requests", "Requests by route and status.", ["method", "route", "status"]
)
request_seconds = Histogram(
    "membank_request_seconds",
    "Time from a request to the end of its response, including the whole of a stream.",
    ["route"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
)
_answers = Counter("membank_answers", "Answers by mode.", ["mode"])
_tokens = Counter("membank_answer_tokens", "Tokens of answers.", ["mode", "kind"])
_parts = {
    name: Histogram(f"membank_answer_{name}_seconds", told, ["mode"], buckets=_FAST)
    for name, told in {
        "search": "Time of an answer's search, embedding included.",
        "load": "Time of loading an answer's memories.",
        "queue": "Time that an answer waited for its turn at the model.",
        "prefill": "Time from the model's start to an answer's first token.",
        "first_token": "Time from the question to an answer's first token.",
    }.items()
}


def answered(mode: str, timings_ms: Mapping[str, float], usage: Mapping[str, int]) -> None:
    """Count an answer. `timings_ms` and `usage` are those of app.answer.ask.Answer."""
    _answers.labels(mode).inc()
    for name, histogram in _parts.items():
        histogram.labels(mode).observe(timings_ms[name] / 1000)
    for name, count in usage.items():
        _tokens.labels(mode, name.removesuffix("_tokens")).inc(count)
