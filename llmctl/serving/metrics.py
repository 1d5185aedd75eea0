"""What a server counts, under vLLM's names behind ``llmctl:``, in Prometheus' text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from llmctl.serving.models import ServedModel

MODEL_LABEL = ["model_name"]
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
GAPS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0)
COUNTS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)


class Metrics:
    """The counters and histograms of a server."""

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        self.registry = CollectorRegistry()
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts.")
        self.generation_tokens = self._counter("generation_tokens", "Tokens written.")
        self.request_success = Counter(
            "llmctl:request_success",
            "Requests that were finished.",
            [*MODEL_LABEL, "finished_reason"],
            registry=self.registry,
        )
        self.first_token = self._histogram(
            "time_to_first_token_seconds", "Time to the first token.", SECONDS
        )
        self.gap = self._histogram(
            "inter_token_latency_seconds", "Time between two tokens of a text.", GAPS
        )
        self.latency = self._histogram(
            "e2e_request_latency_seconds", "Time from a request to its end.", SECONDS
        )
        self.decode_time = self._histogram(
            "request_decode_time_seconds", "Time from the first token to the last.", SECONDS
        )
        self.request_prompt = self._histogram(
            "request_prompt_tokens", "Tokens of a request's prompts.", COUNTS
        )
        self.request_generation = self._histogram(
            "request_generation_tokens", "Tokens written for a request.", COUNTS
        )
        self.request_max = self._histogram(
            "request_max_num_generation_tokens", "Tokens that a request may have.", COUNTS
        )
        self.registry.register(EngineCollector(models))

    def _counter(self, name: str, what: str) -> Counter:
        return Counter(f"llmctl:{name}", what, MODEL_LABEL, registry=self.registry)

    def _histogram(self, name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(
            f"llmctl:{name}", what, MODEL_LABEL, buckets=buckets, registry=self.registry
        )

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)


class EngineCollector(Collector):
    """What engines say of themselves when they are asked."""

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        self._models = models

    def collect(self) -> Iterable[Metric]:
        """The figures of each model that writes."""
        gauges = {
            "num_requests_running": "Texts that are being written.",
            "num_requests_waiting": "Texts that wait for a place.",
            "kv_cache_usage_perc": "Share of the room for keys and values in use.",
            "prefix_cache_bytes": "Bytes of keys and values that are kept for other prompts.",
            "prefix_cache_max_bytes": "Bytes of keys and values that may be kept so.",
        }
        counters = {
            "prefix_cache_queries": "Tokens of prompts looked for among those kept.",
            "prefix_cache_hits": "Tokens of prompts found among those kept.",
            "prefix_cache_evictions": "Blocks of tokens that were no longer kept, for others.",
            "num_preemptions": "Texts that lost their place to older ones.",
            "spec_decode_num_drafts": "How often tokens were written ahead.",
            "spec_decode_num_draft_tokens": "Tokens that were written ahead.",
            "spec_decode_num_accepted_tokens": "Tokens written ahead that were kept.",
        }
        families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {
            name: GaugeMetricFamily(f"llmctl:{name}", what, labels=MODEL_LABEL)
            for name, what in gauges.items()
        }
        for name, what in counters.items():
            families[name] = CounterMetricFamily(f"llmctl:{name}", what, labels=MODEL_LABEL)
        kept = CounterMetricFamily(
            "llmctl:spec_decode_num_accepted_tokens_per_pos",
            "Tokens written ahead that were kept, by their place.",
            labels=[*MODEL_LABEL, "position"],
        )
        for model in self._models.values():
            if model.engine is None:
                continue
            engine, scheduler = model.engine, model.engine.scheduler
            for name, value in {
                "num_requests_running": len(scheduler.running),
                "num_requests_waiting": len(scheduler.waiting),
                "kv_cache_usage_perc": scheduler.kv_used / scheduler.kv_tokens,
                "prefix_cache_bytes": scheduler.prefixes.bytes,
                "prefix_cache_max_bytes": scheduler.config.prefix_cache,
                "prefix_cache_evictions": scheduler.prefixes.evictions,
                "prefix_cache_queries": scheduler.prefix_queries,
                "prefix_cache_hits": scheduler.prefix_hits,
                "num_preemptions": scheduler.preemptions,
                "spec_decode_num_drafts": engine.drafts,
                "spec_decode_num_draft_tokens": engine.drafted,
                "spec_decode_num_accepted_tokens": sum(engine.accepted),
            }.items():
                families[name].add_metric([model.name], value)
            for place, tokens in enumerate(engine.accepted if engine.drafts else ()):
                kept.add_metric([model.name, str(place)], tokens)
        return [*families.values(), kept]
