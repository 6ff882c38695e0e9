"""What Prometheus is told of one run. Counters are since the start of this coordinator; docs/operations.md lists them.

Devices choose the text of some labels: how many there can be is bounded, whatever they say.
"""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from coordinator.events import Phase
from coordinator.survey import State, Survey

CODES = 32
"""Codes of failures and rejections that are counted by name; the rest are `other`."""
DEVICES = 200
"""Devices whose vital signs are told, the first by name; how many are not, is told as well."""
SIGNS = 16
"""Vital signs that are told of one device."""
DURATIONS = (1, 3, 10, 30, 60, 120, 300, 600, 1800, 3600, 14400, 86400)
LOSSES = (0.0001, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1)
STATISTICS = ("weighted_mean", "p10", "worst")
SIGN = re.compile(r"[a-z][a-z0-9_]{0,63}")


class Metrics:
    """Call it with every event of coordinator.server; `look` says how things stand, None before there is a fleet."""

    def __init__(self, look: Callable[[], Survey | None]) -> None:
        self._registry = registry = CollectorRegistry()
        self._closed = Counter("talaria_rounds_closed", "Rounds that were closed.", registry=registry)
        self._abandoned = Counter("talaria_rounds_abandoned", "Attempts without a quorum.", registry=registry)
        self._accepted = Counter("talaria_updates_accepted", "Updates that were accepted.", registry=registry)
        self._trouble = {
            kind: Counter(name, text, ["code"], registry=registry)
            for kind, name, text in (
                ("rejected", "talaria_rejections", "Refused messages and updates, once per device, code and round."),
                ("failed", "talaria_failures", "Rounds that devices could not finish."),
            )
        }
        self._codes: dict[str, set[str]] = {kind: set() for kind in self._trouble}
        self._duration = Histogram(
            "talaria_round_duration_seconds", "From opening to closing.", buckets=DURATIONS, registry=registry
        )
        self._loss = Histogram(
            "talaria_encoding_loss", "Share of an update that encoding lost.", buckets=LOSSES, registry=registry
        )
        self._accuracy = Gauge(
            "talaria_accuracy", "Of the fleet, in the last round.", ["metric", "statistic"], registry=registry
        )
        self._connected = Gauge("talaria_broker_connected", "1 while the broker is connected.", registry=registry)
        registry.register(_Standing(look))
        ProcessCollector(registry=registry)

    def __call__(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "connected":
                self._connected.set(1)
            case "disconnected":
                self._connected.set(0)
            case "accepted":
                self._accepted.inc()
                loss = event["metrics"].get("encoding_loss")
                if loss is not None and 0 <= loss < math.inf:
                    self._loss.observe(loss)
            case "rejected" | "failed" as kind:
                self._trouble[kind].labels(self._bounded(kind, event["code"])).inc()
            case "abandoned":
                self._abandoned.inc()
            case "closed":
                self._closed.inc()
                self._duration.observe(event["wall_s"])
                self._fares(event["evaluation"])
            case "finished":
                self._fares(event["evaluation"])

    def page(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._registry)

    def _fares(self, evaluation: dict[str, dict[str, Any]]) -> None:
        for metric, spread in evaluation.items():
            for statistic in STATISTICS:
                self._accuracy.labels(metric, statistic).set(spread[statistic])

    def _bounded(self, kind: str, code: str) -> str:
        known = self._codes[kind]
        if len(known) < CODES:
            known.add(code)
        return code if code in known else "other"


class _Standing(Collector):
    """What is not counted but looked at, when somebody asks."""

    def __init__(self, look: Callable[[], Survey | None]) -> None:
        self._look = look

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        survey = self._look()
        if survey is None:
            return
        yield _gauge("talaria_round", "The round that is open or comes next.", survey.round)
        yield _gauge("talaria_round_attempt", "Attempts of it so far.", survey.attempt)
        yield _labelled("talaria_phase", "1 for the phase of the run.", "phase", {p: p == survey.phase for p in Phase})
        yield _gauge("talaria_queue_jobs", "Work that waits for its turn.", survey.jobs)
        yield _gauge("talaria_granted_bytes", "Bytes that devices may send now.", survey.granted_bytes)
        yield _gauge("talaria_board_due", "Tasks and payloads that wait to be published.", survey.board_due)
        states = [view.state for view in survey.devices]
        yield _labelled("talaria_devices", "Devices by state.", "state", {s: states.count(s) for s in State})
        for name, text, value in (
            ("talaria_received_bytes", "Packets with chunks of updates.", sum(v.bytes_up for v in survey.devices)),
            ("talaria_sent_bytes", "Packets of payloads for devices.", sum(v.bytes_down for v in survey.devices)),
        ):
            yield CounterMetricFamily(name, text, value=value)
        yield from self._vitals(survey)

    @staticmethod
    def _vitals(survey: Survey) -> Iterator[Metric]:
        told = [view for view in survey.devices if view.vitals is not None]
        vitals = GaugeMetricFamily("talaria_device_vital", "As the device said.", labels=["device", "name"])
        for view in told[:DEVICES]:
            assert view.vitals is not None
            signs = [name for name in sorted(view.vitals.metrics) if SIGN.fullmatch(name)]
            for name in signs[:SIGNS]:
                vitals.add_metric([view.device, name], view.vitals.metrics[name])
        yield vitals
        left = max(0, len(told) - DEVICES)
        yield _gauge("talaria_device_vitals_left_out", "Devices whose vital signs are not told here.", left)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _labelled(name: str, text: str, label: str, values: dict[Any, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for each, value in values.items():
        family.add_metric([str(each)], float(value))
    return family
