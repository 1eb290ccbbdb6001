"""Class weights and class draws: one file per method, and the maths that they share."""

from remix_dist.types import import_siblings

import_siblings(__name__, __path__)
