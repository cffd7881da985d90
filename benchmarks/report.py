"""Results as tables: for the terminal, and as Markdown between the marks in README.md."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.shapes import SCALES
from benchmarks.workloads import WORKLOADS, Line, Summary

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
COLUMNS = ("CPU s", "wall s", "peak MB", "growth MB")


def summaries(results: Mapping[str, Any]) -> list[Summary]:
    """Of every workload that any measurement was made for."""
    scale, records = SCALES[results["scale"]], results["records"]
    wanted = {name: one for name, one in WORKLOADS.items() if name in results["workloads"]}
    return [one.summary(scale, records) for one in wanted.values()]


def disagreements(results: Mapping[str, Any]) -> list[str]:
    """Measurements of one model, dictionary and tokens whose first features' maxima are not each other's."""
    first: dict[tuple[str, int], tuple[str, list[float]]] = {}
    found = []
    for key, record in results["records"].items():
        maxima, kind = record["first_maxima"], "pair" if record["what"].endswith("_pair") else "single"
        if not maxima:
            continue
        other, values = first.setdefault((kind, record["rows"]), (key, maxima))
        if any(abs(a - b) > 1e-3 * max(abs(a), 1e-6) for a, b in zip(values, maxima, strict=True)):
            found.append(f"{key} and {other} have other maxima: {maxima} and {values}")
    return found


def show(console: Console, results: Mapping[str, Any]) -> None:
    for summary in summaries(results):
        table = Table(title=summary.title, title_justify="left")
        table.add_column("")
        for column in COLUMNS:
            table.add_column(column, justify="right")
        for one in summary.lines:
            table.add_row(one.label, *_cells(one))
        if summary.ratios:
            table.add_section()
        for name, value in summary.ratios.items():
            table.add_row(name, _number(value, 2))
        console.print(table)
        for note in summary.notes:
            console.print(f"  {note}", markup=False, highlight=False)
    for text in disagreements(results):
        console.print(f"not the same: {text}", style="red", markup=False)


def markdown(results: Mapping[str, Any]) -> str:
    """A table for each workload, its ratios and notes, under a line that says what it was measured with."""
    parts = [_measured_with(results)]
    for summary in summaries(results):
        lines = [f"**{summary.title}**", "", f"| | {' | '.join(COLUMNS)} |", "|---|--:|--:|--:|--:|"]
        lines += [f"| {one.label} | {' | '.join(_cells(one))} |" for one in summary.lines]
        lines += ["", *(f"- {name.strip()}: {_number(value, 2)}" for name, value in summary.ratios.items())]
        lines += [f"- {note}" for note in summary.notes]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def fill_readme(results: Mapping[str, Any], path: Path = README) -> None:
    """Puts `markdown` between the marks. ValueError when there are none, or the results are of the small scale."""
    if results["scale"] != "full":
        raise ValueError(f"these results are of the scale {results['scale']!r}; the README shows those of 'full'")
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} lacks {BEGIN} and {END}, between which the results go")
    path.write_text(f"{before}{BEGIN}\n\n{markdown(results)}\n\n{END}{after}")


def _measured_with(results: Mapping[str, Any]) -> str:
    versions: dict[str, str] = {}
    for record in results["records"].values():
        if record["what"] != "dashboard":
            versions |= record["versions"]
    said = ", ".join(f"{name} {number}" for name, number in versions.items())
    return f"One thread, {results['processor']}; {said}. Ratios are of CPU seconds."


def _cells(one: Line) -> list[str]:
    return [_number(one.cpu_s, 1), _number(one.wall_s, 1), _number(one.peak_mb, 0), _number(one.growth_mb, 0)]


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"
