"""For whoever watches the process."""

from __future__ import annotations

import sqlalchemy as sa
from flask import Blueprint, jsonify
from flask.typing import ResponseReturnValue
from sqlalchemy.exc import SQLAlchemyError

from apps.chat.web.context import limiter, services

blueprint = Blueprint("health", __name__)


@blueprint.get("/healthz")
@limiter.exempt
def healthz() -> ResponseReturnValue:
    """Whether pages can be served; the broker may be down for an hour without anything being lost, so do not ask it."""
    try:
        with services().database.reading() as db:
            db.execute(sa.select(1))
    except SQLAlchemyError:
        return jsonify(status="database unreachable"), 503
    return jsonify(status="ok")
