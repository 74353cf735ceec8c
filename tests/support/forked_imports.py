"""What `forked` imports once: all that a run of the pipeline needs."""

from edge.quiet import quieten

quieten()

import distill.pipeline.pipeline  # noqa: E402, F401
import edge.export.export  # noqa: E402, F401
