"""Simulations side by side: one row per algorithm, means over its seeds."""

from collections.abc import Callable, Sequence
from statistics import fmean, pstdev

from lab.report import Table
from lab.results import Result
from lab.wording import MISSING

ACCURACY, COST = (0, 1, 2, 3, 4, 5, 6), (0, 7, 8, 9, 10, 11)
"""Columns for a terminal: how the fleet fares, and what that cost."""
NOTE = (
    "After personalization, on each device's own held-out examples, in percent: mean weighted by test examples, plain "
    "mean, standard deviation over the devices, tenth percentile and worst device; the global model's weighted mean; "
    "parameters kept of the dense model. MB: payloads of all rounds and devices. CPU seconds: of all processes."
)


def fleet_table(results: Sequence[Result]) -> Table:
    """The fleet after personalization, accuracies and shares in percent, bytes of all rounds in MB. Where there are
    several seeds, their mean; of the weighted means, which people compare, with the standard deviation."""
    header = (
        "algorithm",
        "accuracy",
        "per device",
        "std",
        "p10",
        "worst",
        "global",
        "params",
        "up MB",
        "down MB",
        "CPU s/round",
        "wall s",
    )
    labels = dict.fromkeys(result.label for result in results)
    return Table(header, tuple(_row(label, [each for each in results if each.label == label]) for label in labels))


def _row(label: str, results: Sequence[Result]) -> tuple[str, ...]:
    def over(value: Callable[[Result], float | None], digits: int = 1, *, deviation: bool = False) -> str:
        values = [found for result in results if (found := value(result)) is not None]
        if not values:
            return MISSING
        mean = f"{fmean(values):.{digits}f}"
        return f"{mean}\N{PLUS-MINUS SIGN}{pstdev(values):.{digits}f}" if deviation and len(values) > 1 else mean

    def spread(name: str, field: str) -> str:
        def value(result: Result) -> float | None:
            found = result.summary.evaluation.get(name)
            return None if found is None else 100 * float(getattr(found, field))

        return over(value, deviation=field == "weighted_mean")

    def share(result: Result) -> float | None:
        kept = result.summary.share("parameters")
        return None if kept is None else 100 * kept

    return (
        label,
        *(spread("accuracy", field) for field in ("weighted_mean", "mean", "deviation", "p10", "worst")),
        spread("accuracy_global", "weighted_mean"),
        over(share),
        over(lambda result: result.bytes_up / 1e6, 2),
        over(lambda result: result.bytes_down / 1e6, 2),
        over(lambda result: result.cpu_s_per_round, 2),
        over(lambda result: result.wall_s),
    )
