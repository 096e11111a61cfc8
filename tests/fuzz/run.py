#!/usr/bin/env python3
"""Coverage-guided fuzzing of everything that takes bytes from outside.

    python tests/fuzz/run.py protocol --seconds 30       one target
    python tests/fuzz/run.py all --seconds 30 --jobs 2   all of them, two at a time
    python tests/fuzz/run.py torch-file --input FILE     one input again

Needs atheris (in the test environment on x86-64 Linux; elsewhere this says so and ends with 2).
A finding is printed, its input is saved below --findings, and the status is 1. Only true
findings count: nothing here depends on how fast the machine is.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import importlib
import importlib.util
import os
import random
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

HERE = Path(__file__).resolve().parent
TARGETS = {
    "protocol": "wire_targets",
    "zmtp-client": "wire_targets",
    "connection-file": "wire_targets",
    "worker-port": "port_target",
    "torch-file": "model_targets",
    "safetensors-file": "model_targets",
    "onnx-file": "model_targets",
    "images": "image_target",
}
MAX_INPUT = 64 * 1024
_HANG = 10  # times the seconds asked for, and ten minutes: no slow machine, an endless loop
_STRUCTURED = 0.7  # of the mutations, where a target knows its form


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("target", choices=["all", *TARGETS])
    p.add_argument("--seconds", type=int, default=30, help="for each target (default 30)")
    p.add_argument("--jobs", type=int, default=2, help="targets at a time (default 2)")
    p.add_argument(
        "--seed", type=int, default=0, help="begin with these inputs every time (default: others)"
    )
    p.add_argument("--corpus", type=Path, help="folder to keep what was found interesting in")
    p.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    p.add_argument("--input", type=Path, help="run this one input, without atheris")
    p.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    return p


def load(name: str) -> object:
    """The target of this name."""
    sys.path.insert(0, str(HERE))
    module = importlib.import_module(TARGETS[name])
    return next(target for target in module.TARGETS if target.name == name)


def _end() -> NoReturn:
    """Say what went wrong and end at once: atheris cannot end in order (it waits for itself)."""
    traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(77)


def fuzz(name: str, args: argparse.Namespace, corpus: Path, findings: Path) -> None:
    """Run one target in this process; libFuzzer ends it."""
    import atheris

    with atheris.instrument_imports(include=["face_restore_shared", "face_restore_worker"]):
        target = load(name)
        from fuzz_common import at_most
    for seed in target.seeds():
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    target.check(target.seeds()[0])  # what is loaded at the first use is no input's fault

    def one(data: bytes) -> None:
        try:
            with at_most(target.memory):
                target.check(data)
        except BaseException:
            # libFuzzer itself saves only what crashes the interpreter.
            path = findings / f"{name}-{hashlib.sha256(data).hexdigest()[:16]}"
            path.write_bytes(data)
            print(f"Test unit written to {path}", flush=True)
            _end()

    def mutator(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if target.mutate is not None and rng.random() < _STRUCTURED:
            try:
                changed = target.mutate(data, rng)
            except BaseException:
                _end()
            if changed != data and len(changed) <= max_size:
                return changed
        return atheris.Mutate(data, max_size)

    findings.mkdir(parents=True, exist_ok=True)
    options = [
        f"-max_total_time={args.seconds}",
        f"-seed={args.seed}",
        "-reload=0",
        f"-max_len={MAX_INPUT}",
        "-timeout=1000000",  # seconds: a slow machine is no finding
        "-rss_limit_mb=0",  # counted for each input instead
        "-print_final_stats=1",
        f"-artifact_prefix={findings / name}-",
    ]
    atheris.Setup([name, *options, str(corpus)], one, custom_mutator=mutator)
    atheris.Fuzz()


@contextlib.contextmanager
def corpus_folder(wanted: Path | None, name: str) -> Iterator[Path]:
    """A folder for the target's corpus: the one wished for, or one for this run only."""
    if wanted is None:
        with tempfile.TemporaryDirectory(prefix=f"fuzz-{name}-") as folder:
            yield Path(folder)
    else:
        folder = wanted / name
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


def watch(name: str, args: argparse.Namespace) -> tuple[str, int, str]:
    """Run one target in a process of its own: (name, status, what to say)."""
    with corpus_folder(args.corpus, name) as corpus:
        command = [sys.executable, str(HERE / "run.py"), name, "--here"]
        command += ["--seconds", str(args.seconds), "--corpus", str(corpus)]
        command += ["--findings", str(args.findings), "--seed", str(args.seed)]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        if args.seed:
            env["PYTHONHASHSEED"] = "0"
        try:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, text=True,
                errors="replace", timeout=_HANG * args.seconds + 600,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            last = (error.stdout or b"")[-3000:].decode("utf-8", "replace")
            return name, 1, f"HANGS: it did not end\n{last}"
    text = done.stdout
    runs = re.search(r"number_of_executed_units:\s*(\d+)", text)
    covered = re.findall(r"cov: (\d+)", text)
    if done.returncode == 0 and runs and covered:
        return name, 0, f"{runs[1]} inputs, {covered[-1]} edges covered, nothing found"
    return name, 1, f"FOUND SOMETHING (status {done.returncode})\n{text[-6000:]}{saved(text)}"


def saved(text: str) -> str:
    """The input that led to a finding, as text to copy."""
    found = re.search(r"Test unit written to (\S+)", text)
    if found is None:
        return "\nNo input was saved: the fuzzer did not get that far."
    data = Path(found[1]).read_bytes()
    shown = base64.b64encode(data[:4096]).decode()
    return f"\n{found[1]}, {len(data)} bytes, in base64: {shown}"


def main() -> int:
    args = parser().parse_args()
    if args.input is not None:
        load(args.target).check(args.input.read_bytes())  # type: ignore[attr-defined]
        print("nothing found")
        return 0
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed: it has packages for x86-64 Linux and Python 3.11 to 3.13")
        return 2
    if args.here:
        fuzz(args.target, args, args.corpus, args.findings)
        return 0
    names = list(TARGETS) if args.target == "all" else [args.target]
    failed = 0
    with ThreadPoolExecutor(max(1, args.jobs)) as pool:
        for name, status, text in pool.map(lambda name: watch(name, args), names):
            print(f"{name}: {text}", flush=True)
            failed |= status
    return failed


if __name__ == "__main__":
    sys.exit(main())
