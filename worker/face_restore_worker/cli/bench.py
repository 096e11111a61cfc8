"""``face-restore bench``: how fast this machine restores faces, and how fast others would."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from face_restore_worker.bench.variants import PEERS
from face_restore_worker.bench.weights import SIZES
from face_restore_worker.cli import settings
from face_restore_worker.cli.exits import Exit

if TYPE_CHECKING:
    from face_restore_worker.bench.weights import Weights

PARTS = ("network", "job", "start")
PRECISIONS = ("fp32", "bf16", "fp16")

_EPILOG = """\
parts:
  network  one face through the network alone; each variant in a process of its own, in turns:
           steady and first face, loading, peak memory, error against the plainest variant
  job      photographs from file to file through a worker of its own, by stage
  start    commands, imports, a worker's start until it answers and until its model is loaded

Without an installed GPEN-BFR-2048, and with --size, the weights are random but reproducible:
they take the same time.

--compare times the same network elsewhere, in the same run: onnxruntime, openvino (at f32 and at
its default), eager (written as GPEN's authors write it), compile (torch.compile of the reference)
and reference (this project's readable network). The first two get an export of the authors' form,
as published files are; onnxruntime-tidy and openvino-tidy one of our readable network, which suits
them better. They need `pip install onnxruntime openvino onnxscript`; what is missing is said.

examples:
  face-restore bench
  face-restore bench --part network --compare onnxruntime,openvino,eager,compile --rounds 3
  face-restore bench --part job --megapixels 24 --faces 1 --json
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the ``bench`` command to argparse's subparsers; ``run`` carries it out."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "bench",
        help="measure the speed of this machine",
        description="Measure how fast this machine restores faces.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--part",
        type=_words(PARTS),
        default=list(PARTS),
        metavar="PART,...",
        help="network, job, start (default: all)",
    )
    _add_network_options(parser)
    parser.add_argument(
        "--rounds", type=_rounds, default=5, metavar="N", help="measurements of each (default 5)"
    )
    _add_job_options(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON document")
    form.add_argument("--markdown", action="store_true", help="print Markdown tables")
    parser.add_argument("--quiet", "-q", action="store_true", help="no progress")
    return parser


def _add_network_options(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", help="an installed GPEN's id or a file")
    which.add_argument(
        "--size", type=int, choices=SIZES, help="random weights of GPEN-BFR of this size"
    )
    parser.add_argument(
        "--device", type=settings.device_name, default="auto", help="auto, cpu, cuda or cuda:1"
    )
    parser.add_argument(
        "--precision",
        type=_words(PRECISIONS),
        metavar="P,...",
        help="fp32, bf16, fp16 (default: those the device computes natively)",
    )
    parser.add_argument(
        "--compare", type=_words(PEERS), default=[], metavar="WHAT,...", help="see below"
    )
    settings.add_threads_option(parser)


def _add_job_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--megapixels",
        type=_numbers,
        default=[2.0, 12.0, 24.0],
        metavar="MP,...",
        help="sizes of the photographs (default 2,12,24)",
    )
    parser.add_argument(
        "--faces",
        type=_counts,
        default=[1, 5],
        metavar="N,...",
        help="faces in them (default 1,5)",
    )


def run(args: argparse.Namespace) -> int:
    """Carry out ``face-restore bench ...``; status 1 when something asked for was not measured."""
    from face_restore_worker.bench.report import as_markdown, as_text

    def tell(text: str) -> None:
        if not args.quiet:
            print(text, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="face-restore-bench-") as folder:
        report = measure(args, Path(folder), tell)
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        print(as_markdown(report) if args.markdown else as_text(report))
    network = report.get("network", {})
    failed = network.get("missing") or any("failed" in r for r in network.get("variants", ()))
    return Exit.SOME_FAILED if failed else Exit.OK


def measure(args: argparse.Namespace, folder: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """The report as plain values: what --json prints."""
    import datetime

    from face_restore_worker.bench import machine
    from face_restore_worker.bench.weights import prepare
    from face_restore_worker.cores import choose_threads
    from face_restore_worker.pipeline.device import choose_device

    device, threads = choose_device(args.device), choose_threads(args.threads)
    report: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["face-restore", *sys.argv[1:]]),
        "machine": machine.describe(device),
        "threads": threads,
        "rounds": args.rounds,
    }
    model = settings.model_name(args.model) if args.model else None
    tell("Preparing weights")
    weights = prepare(model, args.size, folder)
    report |= {"model": weights.name, "size": weights.size}
    if "network" in args.part:
        network, others = _network(args, weights, device, threads, folder, tell)
        report |= {"network": network, "others": others}
    if "job" in args.part or "start" in args.part:
        report |= _worker(args, weights, device, threads, folder, tell)
    return report


def _network(
    args: argparse.Namespace,
    weights: Weights,
    device: str,
    threads: int,
    folder: Path,
    tell: Callable[[str], None],
) -> tuple[dict[str, Any], float]:
    from face_restore_worker.bench import variants
    from face_restore_worker.bench.network import NetworkBench

    precisions = args.precision or _native(device)
    chosen, missing = variants.choose(precisions, args.compare, device)
    for gap in missing:
        tell(f"Not timed: {gap.label}: {gap.why}. To mend that: {gap.mend}")
    bench = NetworkBench(weights, device, threads, args.rounds, folder, tell)
    rows, others = bench.run(chosen)
    own = {row.variant.key: row for row in rows if row.variant.key in precisions}
    table = []
    for row in rows:
        ratios = {key: row.ratio_to(other) for key, other in own.items()}
        table.append(row.as_json() | {"ratios": ratios})
    return {
        "variants": table,
        "own": list(own),
        "missing": [vars(gap) for gap in missing],
        "on_gpu": device.partition(":")[0] == "cuda",
    }, others


def _native(device: str) -> list[str]:
    """The precisions worth timing on a device."""
    from face_restore_worker.pipeline.device import native_bf16

    kind = device.partition(":")[0]
    if kind == "cuda":
        return ["fp16", "bf16", "fp32"]
    return ["fp32", "bf16"] if kind == "cpu" and native_bf16() else ["fp32"]


def _worker(
    args: argparse.Namespace,
    weights: Weights,
    device: str,
    threads: int,
    folder: Path,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """The parts that need a worker."""
    from face_restore_worker.bench import job, start
    from face_restore_worker.client.client import WorkerClient

    report: dict[str, Any] = {}
    options = job.worker_options(weights, device, threads)
    times = job.Start()
    with job.own_home(folder / "home"):
        if "start" in args.part:
            report["start"] = {"commands": start.measure(args.rounds, tell)}
            for number in range(1, args.rounds):
                tell(f"Starting a worker, {number} of {args.rounds}")
                job.start_worker(options, times)
        tell("Starting the worker")
        job.start_worker(options, times)
        if "start" in args.part:
            report["start"]["worker"] = times.as_json()
        if "job" in args.part:
            with WorkerClient.connect() as client:
                kinds = [(mp, faces) for mp in args.megapixels for faces in args.faces]
                rows = [job.measure(client, *kind, args.rounds, folder, tell) for kind in kinds]
            report["job"] = {"photographs": [row.as_json() for row in rows]}
    return report


def _words(known: tuple[str, ...]) -> Callable[[str], list[str]]:
    """A parser of words with commas between them."""

    def parse(text: str) -> list[str]:
        words = [word.strip() for word in text.split(",") if word.strip()]
        wrong = [word for word in words if word not in known]
        if wrong or not words:
            raise argparse.ArgumentTypeError(
                f"{', '.join(map(repr, wrong)) or 'nothing'} is not among {', '.join(known)}"
            )
        return list(dict.fromkeys(words))

    return parse


def _numbers(text: str) -> list[float]:
    """Positive numbers with commas between them."""
    values = [settings.positive(word) for word in text.split(",")]
    if not all(values):
        raise argparse.ArgumentTypeError(f"{text!r} holds a zero")
    return values


def _counts(text: str) -> list[int]:
    """Whole numbers of at least 1 with commas between them."""
    values = [settings.whole(word) for word in text.split(",")]
    if not all(values):
        raise argparse.ArgumentTypeError(f"{text!r} holds a zero")
    return values


def _rounds(text: str) -> int:
    value = settings.whole(text)
    if value < 1:
        raise argparse.ArgumentTypeError("at least one round is needed")
    return value
