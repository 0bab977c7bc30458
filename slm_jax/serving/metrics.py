"""What a server counts, in Prometheus' format."""

import prometheus_client as prometheus

CONTENT_TYPE = prometheus.CONTENT_TYPE_LATEST
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self.registry = registry = prometheus.CollectorRegistry()
        self.requests = prometheus.Counter(
            'slm_jax_requests', 'Requests answered', ['path', 'status'], registry=registry
        )
        self.seconds = prometheus.Histogram(
            'slm_jax_request_seconds', 'From the first byte asked to the last answered', ['path'],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.cancelled = prometheus.Counter(
            'slm_jax_requests_cancelled', 'Requests whose client left, or whose time was over', registry=registry
        )
        self.audio = prometheus.Counter('slm_jax_audio_seconds', 'Seconds of audio heard', registry=registry)
        self.tokens = prometheus.Counter('slm_jax_tokens', 'Tokens written', registry=registry)
        self.inside = prometheus.Gauge('slm_jax_requests_inside', 'Requests being answered', registry=registry)
        self.waiting = prometheus.Gauge('slm_jax_queries_waiting', 'Queries in no batch yet', registry=registry)
        self.batches = prometheus.Histogram('slm_jax_batch_seconds', 'Of a batch', buckets=_SECONDS, registry=registry)
        self.rows = prometheus.Counter('slm_jax_rows', 'Rows computed', ['kind'], registry=registry)

    def batch(self, queries: int, rows: int, seconds: float) -> None:
        """Counts a batch."""
        self.batches.observe(seconds)
        self.rows.labels('asked').inc(queries)
        self.rows.labels('empty').inc(rows - queries)

    def text(self) -> bytes:
        """All of it."""
        return prometheus.generate_latest(self.registry)
