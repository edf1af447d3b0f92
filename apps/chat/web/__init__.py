"""The web app: accounts, chats, messages, and a live stream of what changes in them."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

from flask import Flask, Response
from werkzeug.middleware.proxy_fix import ProxyFix

from apps.chat.database import Database
from apps.chat.live import Live
from apps.chat.settings import Settings
from apps.chat.web import auth, blobs, chats, demo, errors, health, messages, stream
from apps.chat.web.context import Services, csrf, limiter
from apps.chat.web.display import register_display
from apps.events import thread_changed
from pulsartasks.contrib.blobs import open_blob_store

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "font-src 'self'",
        "img-src 'self' blob:",
        "media-src 'self' blob:",
        "connect-src 'self'",
        "manifest-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
_FOLDER = Path(__file__).parent.parent


def create_app(settings: Settings | None = None) -> Flask:
    """The web app with these settings, or with those of the environment."""
    settings = settings or Settings.from_environ(os.environ)
    app = Flask(__name__, template_folder=str(_FOLDER / "templates"), static_folder=str(_FOLDER / "static"))
    app.config.update(
        SECRET_KEY=settings.secret_key,
        MAX_CONTENT_LENGTH=settings.upload_limit,
        PERMANENT_SESSION_LIFETIME=timedelta(days=30),
        SESSION_REFRESH_EACH_REQUEST=False,  # `auth.renew` does, once a day
        SESSION_COOKIE_NAME="babblebox",
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
        SESSION_COOKIE_SECURE=settings.proxies > 0,  # they speak HTTPS with the browser
        WTF_CSRF_TIME_LIMIT=None,  # as long as the session: a page that stays open all day can still send
    )
    app.extensions["babblebox"] = Services(
        settings=settings,
        database=Database(settings.database_url),
        blobs=open_blob_store(settings.blob_store),
        live=Live(thread_changed, settings.stream_limit),
    )
    if settings.proxies:  # else all people were one to the limits of attempts: the proxy
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=settings.proxies, x_proto=settings.proxies)  # type: ignore[method-assign]
    csrf.init_app(app)
    limiter.init_app(app)
    register_display(app)
    errors.register_errors(app)
    for module in (auth, blobs, chats, health, messages, stream):
        app.register_blueprint(module.blueprint)
    if settings.demo:
        app.register_blueprint(demo.blueprint)
    app.after_request(_harden)
    return app


def _harden(response: Response) -> Response:
    headers = response.headers
    headers.setdefault("Content-Security-Policy", CONTENT_SECURITY_POLICY)
    headers.setdefault("X-Content-Type-Options", "nosniff")
    headers.setdefault("Referrer-Policy", "same-origin")
    headers.setdefault("Cross-Origin-Opener-Policy", "same-origin")
    headers.setdefault("Cross-Origin-Resource-Policy", "same-origin")
    headers.setdefault("Permissions-Policy", "microphone=(self), camera=(), geolocation=()")
    headers.setdefault("Cache-Control", "no-store")
    return response
