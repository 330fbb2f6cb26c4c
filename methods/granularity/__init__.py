"""One file per granularity; every file here is imported, and with that registered."""

from methods.registry.discover import import_all

import_all(__name__, __path__)
