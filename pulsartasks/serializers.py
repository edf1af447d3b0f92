"""Values to bytes and back: JSON by msgspec, checked against the annotations on both sides. Never pickle."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Generic, TypeVar, get_args, get_type_hints

import msgspec

from pulsartasks.errors import ConfigurationError, InvalidArgumentsError, UnreadableMessageError

T = TypeVar("T")

UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What a msgspec decoder raises for bytes that somebody else wrote."""


def to_builtin(value: Any) -> Any:
    """What msgspec asks for a type it does not know: pydantic models give their own data."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json", round_trip=True)
    raise NotImplementedError(f"{type(value).__qualname__} is not data; give its fields instead")


def from_builtin(kind: type, value: Any) -> Any:
    """The inverse of `to_builtin`, for an annotation that msgspec does not know."""
    if kind is object:
        return value
    if hasattr(kind, "model_validate_json"):
        # As JSON, or a strict model would refuse a date's text; by either name, since a model may be sent by both.
        return kind.model_validate_json(msgspec.json.encode(value), by_alias=True, by_name=True)
    raise NotImplementedError(f"{kind.__qualname__} cannot be made from JSON")


_encoder = msgspec.json.Encoder(enc_hook=to_builtin)


def encode(value: Any, *, what: str = "this") -> bytes:
    """`value` as JSON; `what` it is, for the complaint.

    Raises:
        InvalidArgumentsError: it has something in it that is not data.
    """
    try:
        encoded = _encoder.encode(value)
        if b"null" in encoded:
            _refuse_nan(value)
    except (TypeError, NotImplementedError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise InvalidArgumentsError(f"{what} cannot be sent as JSON: {error}") from error
    return encoded


def _refuse_nan(value: Any) -> None:
    """The encoder makes null of what JSON has no number for.

    Raises:
        ValueError: there is such a one in it.
    """
    left = [msgspec.to_builtins(value, enc_hook=lambda v: None if isinstance(v, msgspec.Raw) else to_builtin(v))]
    while left:
        part = left.pop()
        if isinstance(part, float) and not math.isfinite(part):
            raise ValueError(f"it has no {part}; give None or a text instead")
        if isinstance(part, dict):
            left += part.values()
        elif isinstance(part, list | tuple | set | frozenset):
            left += part


class PayloadCodec(Generic[T]):
    """One type as JSON: an event's payload, or one argument."""

    def __init__(self, kind: Any) -> None:
        try:
            self._decode: Callable[[bytes | msgspec.Raw], Any] = msgspec.json.Decoder(
                kind, dec_hook=from_builtin
            ).decode
        except TypeError as error:
            if not _has_model(kind):
                raise ConfigurationError(f"{kind!r} cannot be read from JSON: {error}") from error
            self._decode = _models_decoder(kind)

    def encode(self, payload: T) -> bytes:
        """`payload` as JSON, after checking that its reader will accept it.

        Raises:
            InvalidArgumentsError: it does not have the declared type, or is not data.
        """
        value = encode(payload)
        try:
            self.decode(value)
        except UnreadableMessageError as error:
            raise InvalidArgumentsError(str(error)) from error
        return value

    def decode(self, value: bytes | msgspec.Raw) -> T:
        """The payload in `value`.

        Raises:
            UnreadableMessageError: it is not JSON, or not of the declared type.
        """
        try:
            return self._decode(value)  # type: ignore[no-any-return]
        except Exception as error:  # msgspec's errors, and whatever a model's validator raises
            raise UnreadableMessageError(str(error) or type(error).__name__) from error


class _Call(msgspec.Struct):
    """The wire form of a call."""

    args: list[msgspec.Raw] = []
    kwargs: dict[str, msgspec.Raw] = {}


class _NoKeywords(msgspec.Struct, forbid_unknown_fields=True):
    """The keyword arguments of a call that has none."""


_NO_KEYWORDS = b',"kwargs":{}}'
"""How such a call of ours ends."""
_decode_call = msgspec.json.Decoder(_Call).decode
_decode_keywords = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class CallCodec:
    """The arguments of one function as JSON, checked against its annotations.

    Parameters in `injected` are filled by the worker and never travel; so is the first one when `skip_first` is set.
    `hints` are the annotations of what travels, if not the function's own.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        skip_first: bool = False,
        injected: Collection[str] = (),
        hints: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = getattr(function, "__name__", "task")
        hints = type_hints(function) if hints is None else hints
        parameters = list(inspect.signature(function).parameters.values())[1 if skip_first else 0 :]
        travelling = [p for p in parameters if p.name not in injected]
        self._positional = [p.name for p in travelling if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        self._keywords = {p.name for p in travelling if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        self._required = {
            p.name for p in travelling if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        }
        self._codecs = {p.name: PayloadCodec[Any](hints.get(p.name, Any)) for p in travelling}
        self._rest = next((p.name for p in travelling if p.kind is p.VAR_POSITIONAL), None)
        self._rest_keywords = next((p.name for p in travelling if p.kind is p.VAR_KEYWORD), None)
        self._decode_exact = self._exact_decoder([hints.get(name, Any) for name in self._positional])

    @property
    def payload(self) -> PayloadCodec[Any]:
        """How an event's payload is read: as the function's first argument.

        Raises:
            ConfigurationError: the function takes none, or needs more than one.
        """
        if not self._positional or len(self._required - {self._positional[0]}):
            raise ConfigurationError(f"{self.name}() handles an event, so it takes exactly one argument: its payload")
        return self._codecs[self._positional[0]]

    def encode(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
        """The call as JSON, after checking that the worker will accept it.

        Raises:
            InvalidArgumentsError: the arguments do not fit the function, or are not data.
        """
        value = encode({"args": args, "kwargs": kwargs}, what=f"a call of {self.name}()")
        try:
            self.decode(value)
        except UnreadableMessageError as error:
            raise InvalidArgumentsError(str(error)) from error
        return value

    def encode_partial(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
        """`encode` of a call whose first argument is not known yet, and left out."""
        value = encode({"args": args, "kwargs": kwargs}, what=f"a call of {self.name}()")
        call = _decode_call(value)
        try:
            self._check_arity(len(args) + 1, call.kwargs)
            self._convert(call.args, call.kwargs, first=1)
        except UnreadableMessageError as error:
            raise InvalidArgumentsError(f"{error}, with the result of what comes before it") from error
        return value

    def decode(self, value: bytes) -> tuple[list[Any], dict[str, Any]]:
        """The arguments in `value`.

        Raises:
            UnreadableMessageError: it is not a call, or its arguments do not fit the function.
        """
        if self._decode_exact is not None and value.endswith(_NO_KEYWORDS):
            try:  # `suppress` would take longer than reading
                return list(self._decode_exact(value).args), {}
            except Exception:  # noqa: BLE001, S110 - whatever it is, what follows tells it better
                pass
        try:
            call = _decode_call(value)
        except UNREADABLE as error:
            raise UnreadableMessageError(f"not a call: {error}") from error
        self._check_arity(len(call.args), call.kwargs)
        return self._convert(call.args, call.kwargs)

    def _exact_decoder(self, kinds: Sequence[Any]) -> Callable[[bytes], Any] | None:
        """Reads, in a tenth of the time, a call that gives exactly the positional arguments, as most do."""
        if not self._required.issubset(self._positional):
            return None
        call = msgspec.defstruct("Call", [("args", tuple[tuple(kinds)]), ("kwargs", _NoKeywords)])  # type: ignore[misc]
        try:
            return msgspec.json.Decoder(call, dec_hook=from_builtin).decode
        except TypeError:  # pydantic reads one of them
            return None

    def positional(self, args: list[msgspec.Raw]) -> list[Any]:
        """The values of a call's positional arguments, if it has no others; raises as `decode`."""
        self._check_arity(len(args), {})
        return self._convert(args, {})[0]

    def decode_keywords(self, value: bytes) -> tuple[list[Any], dict[str, Any]]:
        """The arguments in a message that another language wrote: the bare keyword arguments."""
        try:
            keywords = _decode_keywords(value)
        except UNREADABLE as error:
            raise UnreadableMessageError(f"not keyword arguments: {error}") from error
        self._check_arity(0, keywords)
        return self._convert([], keywords)

    def _convert(
        self, args: list[msgspec.Raw], kwargs: dict[str, msgspec.Raw], *, first: int = 0
    ) -> tuple[list[Any], dict[str, Any]]:
        """The values of arguments whose number and names fit, from the parameter at `first` on."""
        count = first + len(args)
        names = self._positional if count <= len(self._positional) else self._padded(count)
        return (
            [self._convert_one(name, raw) for name, raw in zip(names[first:], args)],  # noqa: B905 - more names than args
            {
                name: self._convert_one(name if name in self._keywords else self._rest_keywords, raw)
                for name, raw in kwargs.items()
            },
        )

    def _padded(self, count: int) -> list[str]:
        assert self._rest is not None  # _check_arity saw to it
        return [*self._positional, *[self._rest] * (count - len(self._positional))]

    def _convert_one(self, name: str | None, raw: msgspec.Raw) -> Any:
        assert name is not None  # _check_arity saw to it
        try:
            return self._codecs[name].decode(raw)
        except UnreadableMessageError as error:
            raise UnreadableMessageError(f"{self.name}() argument {name!r}: {error}") from error

    def _check_arity(self, positional: int, kwargs: Mapping[str, Any]) -> None:
        if positional > len(self._positional) and self._rest is None:
            self._refuse(f"takes {len(self._positional)} positional arguments but {positional} were given")
        given = self._positional[:positional]
        if kwargs:
            if twice := [name for name in given if name in kwargs]:
                self._refuse(f"got multiple values for argument {twice[0]!r}")
            if self._rest_keywords is None and (unknown := [name for name in kwargs if name not in self._keywords]):
                self._refuse(f"got an unexpected argument {unknown[0]!r}")
        if len(given) + len(kwargs) < len(self._required) or not self._required.issubset((*given, *kwargs)):
            missing = ", ".join(sorted(self._required.difference(given, kwargs)))
            self._refuse(f"misses the argument {missing}")

    def _refuse(self, what: str) -> None:
        raise UnreadableMessageError(f"{self.name}() {what}")


class _EachCall(msgspec.Struct):
    args: tuple[list[list[msgspec.Raw]]]


_decode_each = msgspec.json.Decoder(_EachCall).decode


class EachCodec(CallCodec):
    """The arguments of many calls of one function, as the one argument of a call: the list of their positional ones."""

    def __init__(self, one: CallCodec) -> None:
        self._one = one
        self.name = one.name

    def decode(self, value: bytes) -> tuple[list[Any], dict[str, Any]]:
        try:
            [items] = _decode_each(value).args
        except UNREADABLE as error:
            raise UnreadableMessageError(f"not a list of calls: {error}") from error
        return [[self._one.positional(item) for item in items]], {}


def is_data(kind: Any) -> bool:
    """Whether values of this type can travel: msgspec knows it, or it has pydantic models in it."""
    if kind is object or _has_model(kind):
        return True
    return not isinstance(msgspec.inspect.type_info(kind), msgspec.inspect.CustomType)


def _has_model(kind: Any) -> bool:
    return hasattr(kind, "model_validate_json") or any(map(_has_model, get_args(kind)))


def _models_decoder(kind: Any) -> Callable[[bytes | msgspec.Raw], Any]:
    """Reads what msgspec does not: a pydantic model beside other types, of which pydantic takes the one that fits."""
    from pydantic import ConfigDict, PydanticUserError, TypeAdapter

    try:
        adapter: TypeAdapter[Any] = TypeAdapter(kind, config=ConfigDict(val_json_bytes="base64"))
    except PydanticUserError as error:
        complaint = error.message.partition(". ")[0]
        raise ConfigurationError(f"{kind!r} cannot be read from JSON: {complaint}") from error
    return lambda value: adapter.validate_json(bytes(value), by_alias=True, by_name=True)


def type_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The function's annotations, resolved.

    Raises:
        ConfigurationError: one of them names something that does not exist.
    """
    try:
        return get_type_hints(function)
    except NameError as error:
        name = getattr(function, "__qualname__", function)
        raise ConfigurationError(
            f"{name}: an annotation cannot be resolved ({error}); define it before the task"
        ) from error
