"""The command `face-restore`, which starts the scripted worker in place of torch's."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> int:
    """The command line; FAULT_ERRNO as for faulty_worker, named FAULT_CLI_ERRNO."""
    from face_restore_worker.cli.main import main as cli_main
    from face_restore_worker.client import launch

    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from faulty_worker import Faults

    worker = str(Path(__file__).with_name("faulty_worker.py"))
    launch._command = lambda: [sys.executable, worker]
    Faults(os.environ.get("FAULT_CLI_ERRNO", "")).install()
    return cli_main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
