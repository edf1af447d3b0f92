"""The speech models behind one small port; which one is asked for by name, so that only that one is imported."""

from collections.abc import Callable

from apps.transcribe.engines.base import Engine, EngineError

__all__ = ["Engine", "EngineError", "load_engine"]


def load_engine(name: str, model: str, threads: int) -> Engine:
    """Load Whisper's `model`, a name that Whisper's own loader fetches or a path, on `threads` threads.

    To be called in the process that will transcribe: a model loaded before a fork hangs in the child.
    """
    factory = _factories().get(name)
    if factory is None:
        raise EngineError(f"WHISPER_ENGINE is {name!r}; known are: {', '.join(_factories())}")
    try:
        return factory(model, threads)
    except ModuleNotFoundError as error:
        raise EngineError(f"the engine {name!r} needs the package {error.name}: pip install '.[transcribe]'") from error
    except Exception as error:  # a cut file alone is a RuntimeError, EOFError, KeyError or UnpicklingError
        raise EngineError(f"WHISPER_MODEL {model!r} cannot be loaded by the engine {name!r}: {error}") from error


def _factories() -> dict[str, Callable[[str, int], Engine]]:
    return {"openai": _openai, "faster": _faster}


def _openai(model: str, threads: int) -> Engine:
    from apps.transcribe.engines.openai import OpenAIEngine

    return OpenAIEngine(model, threads)


def _faster(model: str, threads: int) -> Engine:
    from apps.transcribe.engines.faster import FasterEngine

    return FasterEngine(model, threads)
