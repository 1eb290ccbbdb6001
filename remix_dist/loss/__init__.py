"""The value per row and label: one file per method."""

from remix_dist.types import import_siblings

import_siblings(__name__, __path__)
