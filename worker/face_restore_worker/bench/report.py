"""A report as text for a terminal and as Markdown for the README."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from face_restore_worker.bench.machine import BUSY

Report = Mapping[str, Any]
Table = list[list[str]]


def warnings(report: Report) -> list[str]:
    """Why the figures may be doubtful; said in every form."""
    found = []
    cores, load = report["machine"]["cores"], report["machine"]["load_average"]
    if load is not None and load > cores / 2:
        found.append(
            f"The machine was busy before the start (load average {load:g} on {cores} cores)."
        )
    others = report.get("others")
    if others is not None and others > BUSY:
        found.append(
            f"Other programs took {others:.0%} of the processor meanwhile: only ratios of one "
            "run mean something."
        )
    return found


def machine_line(report: Report) -> str:
    """The machine in one line."""
    m = report["machine"]
    parts = [f"{m['cores']} cores of {m['processor']}"]
    if m["instructions"]:
        parts.append(", ".join(m["instructions"]))
    parts += [f"{m['memory_gb']:g} GB", m["system"], f"torch {m['torch']}"]
    if "gpu" in m:
        parts.insert(0, m["gpu"])
    return "; ".join([*parts, f"{report['threads']} threads"])


def network_table(report: Report) -> Table:
    """A header and a row for each variant."""
    network = report["network"]
    own = [row for row in network["variants"] if row["key"] in network["own"]]
    header = ["implementation", "s per face", "spread", "first face", "load", "peak GB", "error"]
    if network["on_gpu"]:
        header[5] = "GPU GB"
    header += [f"time / {row['key']} here" for row in own]
    table = [header]
    for row in network["variants"]:
        name = f"{row['label']}{' ' + row['version'] if row.get('version') else ''}"
        if "failed" in row:
            table.append([name, f"failed: {row['failed']}", *[""] * (len(header) - 2)])
            continue
        memory = row["gpu_gb"] if network["on_gpu"] else row["peak_gb_one_face"]
        error = row["relative_error"]
        cells = [name, _seconds(row["median"])]
        cells += [f"{_seconds(row['fastest'])} to {_seconds(row['slowest'])}"]
        cells += [_seconds(row["first"]), _seconds(row["load"]), f"{memory:.2f}"]
        cells += ["-" if error is None else f"{error:.1e}"]
        ratios = row["ratios"]
        cells += [_ratio(ratios.get(other["key"])) for other in own]
        table.append(cells)
    for gap in network["missing"]:
        table.append([gap["label"], f"not timed: {gap['why']}", *[""] * (len(header) - 2)])
    return table


def job_table(report: Report) -> Table:
    """A header and a row for each kind of photograph, seconds."""
    rows = report["job"]["photographs"]
    stages = list(rows[0]["stages"]) if rows else []
    table = [["photograph", *stages, "total", "all but network, detection, files"]]
    for row in rows:
        faces = "1 face" if row["faces"] == 1 else f"{row['faces']} faces"
        name = f"{row['megapixels']:g} MP, {faces}"
        if row["found"] != row["faces"]:
            name += f" (places given: the detector finds {row['found']})"
        seconds = [row["stages"][stage] for stage in stages]
        cells = [_seconds(value) for value in [*seconds, row["total"], row["rest"]]]
        table.append([name, *cells])
    return table


def start_table(report: Report) -> Table:
    """A header and a row for each command or import, seconds."""
    table = [["what", "seconds", "spread"]]
    for row in report["start"]["commands"]:
        spread = f"{_seconds(row['fastest'])} to {_seconds(row['slowest'])}"
        table.append([row["what"], _seconds(row["median"]), spread])
    worker = report["start"].get("worker")
    if worker:
        table.append(["worker: answers after its start", _seconds(worker["answers"]), ""])
        table.append(["worker: the network is loaded", _seconds(worker["loaded"]), ""])
    return table


def sections(report: Report) -> list[tuple[str, Table]]:
    """Titles and tables of what was measured."""
    made = []
    if "network" in report:
        made.append((f"One face, {report['model']}", network_table(report)))
    if "job" in report:
        made.append(("A photograph from file to file, seconds", job_table(report)))
    if "start" in report:
        made.append(("Starting, seconds", start_table(report)))
    return made


def as_text(report: Report) -> str:
    """For a terminal."""
    lines = [machine_line(report), *warnings(report)]
    for title, table in sections(report):
        lines += ["", title, *_aligned(table)]
    return "\n".join([*lines, *_mending(report)])


def as_markdown(report: Report) -> str:
    """For a README: when, where, with which command, and the tables."""
    lines = [f"{report['date']}: {machine_line(report)}. `{report['command']}`"]
    lines += warnings(report)
    for title, table in sections(report):
        header, *rows = table
        lines += ["", f"{title}:", "", _markdown(header), "|" + "---|" * len(header)]
        lines += [_markdown(row) for row in rows]
    return "\n".join(lines)


def _mending(report: Report) -> list[str]:
    gaps: Sequence[Report] = report.get("network", {}).get("missing", ())
    return [f"To time {gap['label']} as well: {gap['mend']}" for gap in gaps]


def _markdown(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _aligned(table: Table) -> list[str]:
    # A row with a reason in place of figures must not widen the columns of figures.
    shown = [row for row in table if row[2:] != [""] * len(row[2:])]
    widths = [max(len(row[i]) for row in shown) for i in range(len(table[0]))]
    widths[0] = max(widths[0], *(len(row[0]) for row in table))
    lines = []
    for row in table:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines


def _seconds(value: float) -> str:
    if value >= 0.9995:
        return f"{value:.2f}"
    return f"{value:.3f}" if value >= 0.01 else f"{value:.4f}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
