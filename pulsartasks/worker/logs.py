"""How a worker logs: readable lines on a terminal, one JSON object a line otherwise."""

from __future__ import annotations

import logging
import sys
from contextvars import Token, copy_context
from typing import Any, TypeAlias

import structlog
from structlog.contextvars import bind_contextvars

from pulsartasks.message import Request
from pulsartasks.signals import Signals

LEVELS = ("debug", "info", "warning", "error")

_Bound: TypeAlias = tuple[Token[Any], Token[Any], Token[Any]]
# structlog's own variables; setting them by its functions takes three times as long, for each message.
_TASK, _ID, _ATTEMPT = (token.var for token in copy_context().run(bind_contextvars, task="", id="", attempt=0).values())


def configure_logging(level: str, signals: Signals | None = None, *, again: bool = False) -> None:
    """Send structlog's events from `level` on to standard error.

    Lines of the standard library's loggers come out the same way, so a task may use either.

    Args:
        level: one of `LEVELS`.
        signals: of an app. If anybody has connected to those of logging, structlog's events go through the standard
            library's loggers too, where handlers of theirs find each as the dict that is its record's ``msg``.
        again: it will be called again, when the app is known, so no logger is to keep what it finds now.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if sys.stderr.isatty():
        renderers: list[structlog.typing.Processor] = [structlog.dev.ConsoleRenderer()]
    else:
        renderers = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    asked = signals is not None and any(
        signal.connected
        for signal in (signals.setup_logging, signals.after_setup_logger, signals.after_setup_task_logger)
    )
    passing_on: list[structlog.typing.Processor] = [
        structlog.processors.format_exc_info,
        structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
    ]
    structlog.configure(
        processors=[*shared, *(passing_on if asked else renderers)],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        # A line is written whole, since processes share the stream; print() writes its end separately.
        logger_factory=structlog.stdlib.LoggerFactory() if asked else structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=not again,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
            foreign_pre_chain=shared,
        )
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    if signals is not None and asked:
        _hand_over(signals, level)


def _hand_over(signals: Signals, level: str) -> None:
    """Let those who have connected change how the standard library's loggers are set up, or do it themselves."""
    told = {"loglevel": getattr(logging, level.upper()), "logfile": None, "format": None}
    told["colorize"] = sys.stderr.isatty()
    if signals.setup_logging.connected:
        logging.basicConfig(level=logging.WARNING, handlers=[], force=True)  # as Python begins
        signals.setup_logging.send(None, **told)
        return
    signals.after_setup_logger.send(None, logger=logging.getLogger(), **told)
    signals.after_setup_task_logger.send(None, logger=logging.getLogger("pulsartasks.task"), **told)


def log_of_run(request: Request) -> _Bound:
    """Have all that is logged in this context say what runs, until `end_log_of_run`."""
    return _TASK.set(request.task), _ID.set(request.id), _ATTEMPT.set(request.retries + 1)


def end_log_of_run(bound: _Bound) -> None:
    task, id_, attempt = bound
    _TASK.reset(task)
    _ID.reset(id_)
    _ATTEMPT.reset(attempt)
