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


def paired_row(figure: str, ours: list[float], peer: list[float], bar: float | None, peer_name: str, most: bool = False) -> Row:
    """Of values measured in turns: the median of the ratios of the pairs, and their middle half. A machine's speed moves more from one
    minute to the next than within a pair. `most` is for what should be small."""
    ratios = [a / b for a, b in zip(ours, peer, strict=True)]
    ratio = statistics.median(ratios)
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else (ratio, ratio, ratio)
    shown = f"ratio {ratio:.3f} ({low:.2f} to {high:.2f} in the middle half of {len(ratios)} pairs)"
    met = None if bar is None else ratio <= bar if most else ratio >= bar
    return Row(figure, f"{spread(ours)}, {shown}", f"{spread(peer)} ({peer_name})",
               "–" if bar is None else f"ratio {'≤' if most else '≥'} {bar:g}", met)


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
