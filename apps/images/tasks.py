"""Makes pictures for threads: renditions of what was attached, and a voice card of every transcript.

Blob keys come from the message alone, so a repeated delivery writes the same blobs again and publishes the same event.
"""

import structlog

from apps.events import (
    ImageReady,
    MessageCreated,
    Rendition,
    Transcribed,
    app,
    image_ready,
    message_created,
    transcribed,
)
from apps.images.card import draw_card
from apps.images.pictures import BadPictureError, Encoded, render
from apps.storage import BlobStore

__all__ = ["app"]

log = structlog.get_logger(__name__)


@app.task(
    topic=message_created,
    subscription="images",
    concurrency=2,  # a large picture takes half a gigabyte
    prefetch=2,
    max_retries=5,
    autoretry_for=(OSError,),
    retry_backoff=True,
    ignore_result=True,
)
def make_renditions(message: MessageCreated, blobs: BlobStore) -> None:
    """Publish small, safe copies of a message's picture; that it is no good is an outcome, published too."""
    if message.picture is None:
        return
    picture = blobs.get(message.picture).data
    try:
        made = render(picture)
    except BadPictureError as error:
        log.info("picture.refused", message_id=message.message_id, reason=str(error))
        image_ready.publish(ImageReady(message.message_id, message.chat_id, "picture", "failed", reason=str(error)))
        return
    stored = {name: _store(blobs, f"renditions/{message.message_id}/{name}", image) for name, image in made.items()}
    log.info("picture.rendered", message_id=message.message_id)
    image_ready.publish(ImageReady(message.message_id, message.chat_id, "picture", "ok", stored))


@app.task(
    topic=transcribed,
    subscription="images",
    concurrency=2,
    prefetch=2,
    max_retries=5,
    autoretry_for=(OSError,),
    retry_backoff=True,
    ignore_result=True,
)
def make_card(event: Transcribed, blobs: BlobStore) -> None:
    """Publish the voice card of a transcript, if there is one."""
    if event.status != "ok" or not event.text.strip():
        return
    card = draw_card(event.text, chat_id=event.chat_id, message_id=event.message_id, duration=event.duration)
    stored = {"card": _store(blobs, f"renditions/{event.message_id}/card", card)}
    log.info("card.drawn", message_id=event.message_id)
    image_ready.publish(ImageReady(event.message_id, event.chat_id, "card", "ok", stored))


def _store(blobs: BlobStore, key: str, image: Encoded) -> Rendition:
    blobs.put(key, image.data, image.content_type)
    return Rendition(key, image.content_type, image.width, image.height)
