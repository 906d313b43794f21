"""The rows of the table that compare.py prints."""

import statistics
from dataclasses import dataclass


@dataclass
class Row:
    figure: str
    ours: str
    peer: str = "–"
    bar: str = "–"
    met: bool | None = None


def spread(values: list[float]) -> str:
    """The median, and how far the repetitions lie apart."""
    text = number(statistics.median(values))
    return text if len(values) == 1 else f"{text} ({number(min(values))} to {number(max(values))})"


def number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def ratio_row(figure: str, ours: list[float], peer: list[float], bar: float | None, peer_name: str) -> Row:
    ratio = statistics.median(ours) / statistics.median(peer)
    return Row(figure, f"{spread(ours)}, ratio {ratio:.3f}", f"{spread(peer)} ({peer_name})",
               "–" if bar is None else f"ratio ≥ {bar}", None if bar is None else ratio >= bar)


def limit_row(figure: str, ours: list[float], bar: float | None) -> Row:
    if bar is None:
        return Row(figure, spread(ours))
    return Row(figure, spread(ours), bar=f"< {bar:g}", met=statistics.median(ours) < bar)


def table(rows: list[Row]) -> str:
    lines = ["| figure | ours | llama.cpp | bar | met |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        met = {None: "", True: "yes", False: "**no**"}[row.met]
        lines.append(f"| {row.figure} | {row.ours} | {row.peer} | {row.bar} | {met} |")
    return "\n".join(lines)
