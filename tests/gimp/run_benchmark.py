"""Seconds of a whole click in a real GIMP, part by part; the network is the identity.

    python tests/gimp/run_benchmark.py [--gimp 3.0|3.2] [--sizes 2,12,24] [--runs 5]

Each size (megapixels: 2, 12, 24) with 1 and 5 faces, medians; GEGL's bare read and write take turns
with the clicks, so that a busy machine slows both. A figure, not a test.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import run_suite


def run(version: str, sizes: str, runs: int) -> bool:
    """Print the table; whether it is complete."""
    import gimp_root

    root = gimp_root.ensure(version)
    outside = Path(tempfile.mkdtemp(prefix="face-restore-bench-", dir=root / "tmp"))
    inside = Path("/") / outside.relative_to(root)
    home = outside / "home"
    home.mkdir(mode=0o700)
    worker = None
    try:
        run_suite.prepare(outside, inside)
        env = {**os.environ, "FACE_RESTORE_HOME": str(home)}
        env["PYTHONPATH"] = os.pathsep.join(
            [str(run_suite.ROOT / "worker"), str(run_suite.ROOT / "shared")]
        )
        script = str(run_suite.HERE / "identity_worker.py")
        worker = subprocess.Popen([sys.executable, "-P", script, "--quiet"], env=env)
        run_suite.wait_until((home / "state" / "worker.json").exists, run_suite.START_SECONDS)
        command = run_suite.gimp(root, version, inside, str(inside / "benchmark_in_gimp.py"), {
            "FACE_RESTORE_SIZES": sizes, "FACE_RESTORE_RUNS": str(runs),
        })  # fmt: skip
        with (outside / "gimp.out").open("wb") as out:
            subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, timeout=900)
        report = outside / "report"
        lines = report.read_text().splitlines() if report.exists() else []
        for line in lines:
            if line.startswith("BENCH "):
                show(json.loads(line[6:]))
        if "END" not in lines:
            print((outside / "gimp.out").read_text(errors="replace")[-3000:])
        return "END" in lines
    finally:
        if worker is not None:
            worker.kill()
            worker.wait()
        shutil.rmtree(outside, ignore_errors=True)


def show(entry: dict[str, object]) -> None:
    seconds = entry["seconds"]
    assert isinstance(seconds, dict)
    print(f"{entry['megapixels']} MP, {entry['faces']} of {entry['asked']} faces:")
    for name, value in seconds.items():
        print(f"  {name:32} {value:.3f} s")
    for name in ("whole", "whole but detecting"):
        for bare in ("bare read, write of the patches", "bare read, write of all"):
            print(f"  {name} / {bare}: {seconds[name] / seconds[bare]:.2f}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--gimp", default="3.0", choices=["3.0", "3.2"])
    parser.add_argument("--sizes", default="2,12,24", help="megapixels, of 2, 12, 24")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    return 0 if run(options.gimp, options.sizes, options.runs) else 1


if __name__ == "__main__":
    sys.exit(main())
