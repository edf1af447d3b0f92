"""The blob store that all of BabbleBox's apps share, as a resource of their workers."""

import os
from collections.abc import Iterator

from apps.events import app
from pulsartasks.contrib.blobs import BlobStore, open_blob_store
from pulsartasks.errors import ConfigurationError

__all__ = ["BlobStore", "blob_store"]


@app.resource
def blob_store() -> Iterator[BlobStore]:
    """Where recordings and pictures are; the same for all apps."""
    url = os.environ.get("BLOB_STORE")
    if not url:
        raise ConfigurationError("BLOB_STORE is not set; it is a folder or s3://bucket/prefix. `make run` sets it")
    yield open_blob_store(url)
