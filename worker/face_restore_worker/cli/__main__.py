"""``python -m face_restore_worker.cli``: the command line."""

import sys

from face_restore_worker.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
