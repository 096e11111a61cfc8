"""Where kernels compiled for this machine's GPU are kept between runs."""

from __future__ import annotations

import logging
import os

from face_restore_shared.errors import FaceRestoreError
from face_restore_shared.paths import cache_dir, private_folder

log = logging.getLogger(__name__)


def keep_kernels() -> None:
    """Let Triton keep what it compiles in the project's cache; to be called before it is imported.

    A variable the user has set stays. The folder is only its owner's, as what lies there is run.
    Where it cannot be used, Triton keeps its own default, with a warning.
    """
    if os.environ.get("TRITON_CACHE_DIR"):
        return
    try:
        os.environ["TRITON_CACHE_DIR"] = str(private_folder(cache_dir() / "triton"))
    except FaceRestoreError as error:
        log.warning("%s Kernels are kept in Triton's own folder.", error.message)
