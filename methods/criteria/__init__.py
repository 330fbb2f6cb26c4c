"""Criteria, one file each. Every file in this folder is imported, which registers its criterion."""

from methods.registry.discover import import_all

import_all(__name__, __path__)
