"""Any place with a URL, through fsspec."""

from __future__ import annotations

import fsspec
from fsspec.core import url_to_fs

from remix_dist.types import UserError

EXTRAS = dict(s3="s3", s3a="s3", gs="gcs", gcs="gcs", az="azure", abfs="azure", abfss="azure")


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system and the path of a URL; a missing driver is an error that names the extra to install."""
    scheme = url.split("://", 1)[0] if "://" in url else "file"
    try:
        return url_to_fs(url)
    except ImportError as error:
        extra = EXTRAS.get(scheme)
        way = f"pip install 'remix_dist[{extra}]'" if extra else f"install its fsspec driver: {error}"
        raise UserError(f"{url}: no driver for {scheme}:// is installed; {way}") from error
    except ValueError as error:
        raise UserError(f"{url}: {error}; use a local path, s3://, gs:// or az://") from error
