"""`python -m face_restore_worker.server`: the worker in the foreground."""

import sys

from face_restore_worker.server.process import main

if __name__ == "__main__":
    sys.exit(main())
