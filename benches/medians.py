"""Medians of several runs of two servers, side by side, with what the issue of the comparison asks for."""

import json
import statistics
import sys

folder, runs = sys.argv[1], int(sys.argv[2])


def load(label):
    """Figures by scenario, one list entry a run."""
    figures = {}
    for run in range(1, runs + 1):
        with open(f"{folder}/{label}-{run}.json") as file:
            for row in json.load(file)["scenarios"]:
                figures.setdefault(row["scenario"], []).append(row)
    return figures


def median(rows, key):
    values = [row[key] for row in rows if row.get(key) is not None]
    return statistics.median(values) if values else None


def show(number):
    return "" if number is None else f"{number:.4g}"


synapse, hearth = load("synapse"), load("hearth")
print("| scenario | Synapse/s | Hearth/s | ratio | Synapse p50 | Hearth p50 | Synapse p99 | Hearth p99 | errors |")
print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
for scenario, rows in hearth.items():
    other = synapse.get(scenario, [])
    rate, other_rate = median(rows, "per_sec"), median(other, "per_sec")
    ratio = rate / other_rate if rate and other_rate else None
    cells = [scenario, show(other_rate), show(rate), show(ratio)]
    for key in ("p50_ms", "p99_ms"):
        cells += [show(median(other, key)), show(median(rows, key))]
    cells.append(str(sum(row.get("errors") or 0 for row in rows)))
    print("| " + " | ".join(cells) + " |")
