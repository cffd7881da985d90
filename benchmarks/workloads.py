"""The six workloads: which measurements each is made of, and what is concluded from their records."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil, log
from statistics import linear_regression
from typing import Any

from benchmarks.shapes import Scale

Records = Mapping[str, Mapping[str, Any]]  # by a task's key, what its subprocess wrote

# Stock runs the model again for so many features (its `minibatch_size_features`).
STOCK_BATCH = 256


@dataclass(frozen=True)
class Task:
    """One measurement, in a subprocess of its own.

    `what`: "ours", "stock", "floor", "floor_hook" (no further than the hook), "dashboard", "ours_pair" or "floor_pair";
    "ours_np" and "dashboard_np" write Neuronpedia's batch files.
    `features` is 0 for floors, which encode the whole dictionary whatever is asked for.
    """

    what: str
    rows: int
    features: int = 0
    effect: str = "direct"

    @property
    def key(self) -> str:
        parts = [self.what, f"rows={self.rows}"]
        parts += [f"features={self.features}"] if self.features else []
        parts += [f"effect={self.effect}"] if self.effect != "direct" else []
        return " ".join(parts)

    @property
    def kind(self) -> str:
        """Which inputs it needs."""
        return "pair" if self.what.endswith("_pair") else "single"


@dataclass
class Line:
    """A line of a workload's table; what was not measured is None."""

    label: str
    cpu_s: float | None = None
    wall_s: float | None = None
    peak_mb: float | None = None
    growth_mb: float | None = None


@dataclass
class Summary:
    """What a workload says: costs, ratios of CPU seconds (or slopes), and what one must know to read them."""

    title: str
    lines: list[Line] = field(default_factory=list)
    ratios: dict[str, float | None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Workload:
    tasks: Callable[[Scale], list[Task]]
    summary: Callable[[Scale, Records], Summary]


def line(label: str, task: Task, records: Records) -> Line:
    record = records.get(task.key)
    if record is None:
        return Line(label)
    cost = record["cost"]
    return Line(label, cost["cpu_s"], cost["wall_s"], cost["peak_mb"], cost["growth_mb"])


def ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or not below else above / below


def notes_of(tasks: list[Task], records: Records) -> list[str]:
    """What the measurements themselves had to say, each once."""
    said = [note for task in tasks for note in records.get(task.key, {}).get("notes", [])]
    return list(dict.fromkeys(said))


def _stock_tasks(scale: Scale) -> list[Task]:
    return [Task("stock", scale.rows, n) for n in scale.stock_features]


def _stock_line(scale: Scale, records: Records, features: int) -> tuple[Line, list[str]]:
    """Stock at `features`, by lines a + b n through what was measured: ceil(n / 256) a + b n, as stock runs the model
    again for each 256 features."""
    tasks = [task for task in _stock_tasks(scale) if task.key in records]
    label = f"stock sae_vis, {features} features (extrapolated)"
    if len(tasks) < 2:
        return Line(label), ["stock was measured at fewer than two numbers of features: no line through them"]
    counts = [task.features for task in tasks]
    measured = [records[task.key]["cost"]["cpu_s"] for task in tasks]
    slope, intercept = linear_regression(counts, measured)
    batches = ceil(features / STOCK_BATCH)
    worst = max(abs(intercept + slope * n - y) for n, y in zip(counts, measured, strict=True))
    notes = [
        f"stock CPU s = {batches} x {intercept:.1f} + {slope:.3f} x {features}, by the line through "
        f"{', '.join(map(str, counts))} features (off by at most {worst:.2f} s there)",
        f"stock runs the model once for each {STOCK_BATCH} features: its forward part is counted {batches} time(s). "
        "Wall seconds and memory are not extrapolated",
    ]
    return Line(label, batches * intercept + slope * features), notes


def _against_stock(many: bool) -> Workload:
    def tasks(scale: Scale) -> list[Task]:
        features = scale.many_features if many else scale.features
        return [*_stock_tasks(scale), Task("ours", scale.rows, features), Task("floor", scale.rows)]

    def summary(scale: Scale, records: Records) -> Summary:
        features = scale.many_features if many else scale.features
        measured = [line(f"stock sae_vis, {task.features} features", task, records) for task in _stock_tasks(scale)]
        stock, notes = _stock_line(scale, records, features)
        ours = line(f"ours, {features} features", Task("ours", scale.rows, features), records)
        floor = line("floor", Task("floor", scale.rows), records)
        ratios = {
            "ours / floor": ratio(ours.cpu_s, floor.cpu_s),
            "stock / ours": ratio(stock.cpu_s, ours.cpu_s),
            "stock / floor": ratio(stock.cpu_s, floor.cpu_s),
        }
        title = f"{'W2' if many else 'W1'}: {features} features, logit effects, against stock sae_vis"
        notes += notes_of(tasks(scale), records)
        return Summary(title, [*measured, stock, ours, floor], ratios, notes)

    return Workload(tasks, summary)


def _w3_tasks(scale: Scale) -> list[Task]:
    return [
        Task("dashboard", scale.rows, scale.features, "none"),
        Task("ours", scale.rows, scale.features, "none"),
        Task("floor_hook", scale.rows),
    ]


def _w3_summary(scale: Scale, records: Records) -> Summary:
    labels = ("SAEDashboard", "ours, effect=none", "floor (to the hook)")
    lines = [line(label, task, records) for label, task in zip(labels, _w3_tasks(scale), strict=True)]
    dashboard, ours, floor = (one.cpu_s for one in lines)
    ratios = {
        "ours / floor": ratio(ours, floor),
        "SAEDashboard / ours": ratio(dashboard, ours),
        "SAEDashboard / floor": ratio(dashboard, floor),
    }
    title = f"W3: {scale.features} features, no logit effects, against SAEDashboard"
    return Summary(title, lines, ratios, notes_of(_w3_tasks(scale), records))


def _w6_tasks(scale: Scale) -> list[Task]:
    counts = (scale.features, scale.many_features)
    tasks = [Task(what, scale.rows, n, "none") for n in counts for what in ("dashboard_np", "ours_np")]
    return [*tasks, Task("floor_hook", scale.rows)]


def _w6_summary(scale: Scale, records: Records) -> Summary:
    tasks = _w6_tasks(scale)
    names = {"dashboard_np": "SAEDashboard", "ours_np": "ours"}
    labels = [f"{names[task.what]}, {task.features} features" for task in tasks[:-1]]
    lines = [line(label, task, records) for label, task in zip([*labels, "floor (to the hook)"], tasks, strict=True)]
    theirs, ours, many_theirs, many_ours, floor = (one.cpu_s for one in lines)
    ratios = {
        f"SAEDashboard / ours, {scale.features}": ratio(theirs, ours),
        f"SAEDashboard / ours, {scale.many_features}": ratio(many_theirs, many_ours),
        f"ours / floor, {scale.features}": ratio(ours, floor),
    }
    return Summary("W6: Neuronpedia's batch files, against SAEDashboard", lines, ratios, notes_of(tasks, records))


def _w4_tasks(scale: Scale) -> list[Task]:
    return [Task("ours_pair", scale.rows, scale.features), Task("floor_pair", scale.rows)]


def _w4_summary(scale: Scale, records: Records) -> Summary:
    lines = [line(what, task, records) for what, task in zip(("ours", "floor"), _w4_tasks(scale), strict=True)]
    notes = [f"two models of {scale.pair_layers} layers each; sites {', '.join(scale.pair_hooks)} of both"]
    title = f"W4: {scale.features} features of a crosscoder, two models, four sites"
    return Summary(
        title, lines, {"ours / floor": ratio(lines[0].cpu_s, lines[1].cpu_s)},
        notes + notes_of(_w4_tasks(scale), records),
    )  # fmt: skip


def _row_tasks(scale: Scale) -> list[Task]:
    return [Task("ours", rows, scale.fixed_features) for rows in scale.growing_rows]


def _feature_tasks(scale: Scale) -> list[Task]:
    return [Task("ours", scale.fixed_rows, features) for features in scale.growing_features]


def _w5_summary(scale: Scale, records: Records) -> Summary:
    summary = Summary("W5: ours as tokens and features grow")
    for what, tasks, sizes in (
        ("tokens", _row_tasks(scale), scale.growing_rows),
        ("features", _feature_tasks(scale), scale.growing_features),
    ):
        lines = [line(f"{t.rows * scale.positions:,} tokens, {t.features} features", t, records) for t in tasks]
        summary.lines += lines
        for unit in ("cpu_s", "growth_mb"):
            points = [(n, y) for n, one in zip(sizes, lines, strict=True) if (y := getattr(one, unit))]
            summary.ratios[f"log-log slope of {unit} in {what}"] = _slope(points)
            steps = [_slope([a, b]) for a, b in pairwise(points)]
            summary.ratios |= {f"  step {i + 1} of {unit} in {what}": step for i, step in enumerate(steps)}
    summary.notes.append("1 is proportional, below 1 there is a part that does not grow")
    return summary


def _slope(points: list[tuple[int, float]]) -> float | None:
    if len(points) < 2 or any(y <= 0 for _, y in points):
        return None
    return linear_regression([log(n) for n, _ in points], [log(y) for _, y in points]).slope


WORKLOADS = {
    "W1": _against_stock(many=False),
    "W2": _against_stock(many=True),
    "W3": Workload(_w3_tasks, _w3_summary),
    "W4": Workload(_w4_tasks, _w4_summary),
    "W5": Workload(lambda scale: [*_row_tasks(scale), *_feature_tasks(scale)], _w5_summary),
    "W6": Workload(_w6_tasks, _w6_summary),
}
