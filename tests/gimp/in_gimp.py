"""Started inside GIMP by run_suite.py: all checks, one after the other, in one process."""

import checks_layers  # noqa: F401
import checks_masks  # noqa: F401
import checks_meanwhile  # noqa: F401
import checks_messages  # noqa: F401
import checks_pixels  # noqa: F401
import checks_readme  # noqa: F401
import checks_worker  # noqa: F401
import suite

suite.main()
