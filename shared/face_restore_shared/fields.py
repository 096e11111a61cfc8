"""Small checks the schema is built of; each raises SchemaError naming the field.

A check takes the value as it came from the wire (or from a Python caller), and returns it in
its one normal form, so that a dataclass holds the same whether it was made here or sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from face_restore_shared.errors import SchemaError

T = TypeVar("T")

MAX_COORDINATE = 1e6
MAX_TEXT = 4096


def fail(name: str, wanted: str, value: object) -> SchemaError:
    """The error for a field that has a wrong value; the value is shown shortened."""
    shown = repr(value)
    if len(shown) > 60:
        shown = shown[:57] + "..."
    return SchemaError(
        f"The field {name} must be {wanted}, not {shown}.",
        hint="Plug-in, command line and worker should come from the same version.",
    )


def boolean(name: str, value: object) -> bool:
    """True or False, not 0 or 1."""
    if not isinstance(value, bool):
        raise fail(name, "true or false", value)
    return value


def integer(name: str, value: object, low: int, high: int) -> int:
    """A whole number in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise fail(name, f"a whole number from {low} to {high}", value)
    return int(value)


def number(name: str, value: object, low: float, high: float) -> float:
    """A finite number in [low, high], as float."""
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not low <= value <= high:  # type: ignore[operator]
        raise fail(name, f"a number from {low:g} to {high:g}", value)
    return float(value)  # type: ignore[arg-type]


def coordinate(name: str, value: object) -> float:
    """A position in pixels; it may lie outside the picture."""
    return number(name, value, -MAX_COORDINATE, MAX_COORDINATE)


def text(name: str, value: object, longest: int = MAX_TEXT) -> str:
    """A string without NUL and lone surrogates, at most `longest` characters."""
    if not isinstance(value, str) or len(value) > longest or "\0" in value:
        raise fail(name, f"text of at most {longest} characters", value)
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise fail(name, "text in valid Unicode", value)
    return value


def name_text(name: str, value: object, longest: int = MAX_TEXT) -> str:
    """A string that is not empty."""
    if value == "":
        raise fail(name, f"text of 1 to {longest} characters", value)
    return text(name, value, longest)


def choice(name: str, value: object, allowed: Sequence[Any]) -> Any:
    """One of `allowed`, of the same type too (True is not 1)."""
    for option in allowed:
        if type(value) is type(option) and value == option:
            return option
    raise fail(name, "one of " + ", ".join(map(str, allowed)), value)


def numbers(name: str, value: object, count: int) -> tuple[float, ...]:
    """A sequence of exactly `count` coordinates."""
    items = sequence(name, value, count, count)
    return tuple(coordinate(f"{name}[{i}]", item) for i, item in enumerate(items))


def sequence(name: str, value: object, least: int, most: int) -> list[Any] | tuple[Any, ...]:
    """A list or tuple of `least` to `most` items."""
    if not isinstance(value, list | tuple) or not least <= len(value) <= most:
        wanted = f"a list of {least}" + (f" to {most}" if most != least else "") + " items"
        raise fail(name, wanted, value)
    return value


def optional(name: str, value: object, check: Callable[..., T], *limits: Any) -> T | None:
    """None, or what `check` accepts."""
    return None if value is None else check(name, value, *limits)


def seconds(name: str, value: object) -> dict[str, float]:
    """A map from a stage's name to seconds."""
    if not isinstance(value, Mapping) or len(value) > 100:
        raise fail(name, "a map of seconds by stage", value)
    return {text(name, key, 100): number(f"{name}.{key}", v, 0, 1e9) for key, v in value.items()}


def texts(name: str, value: object, most: int = 1000) -> list[str]:
    """A list of strings."""
    return [text(f"{name}[{i}]", v) for i, v in enumerate(sequence(name, value, 0, most))]


def fields_of(what: str, data: object, known: Sequence[str], *, strict: bool) -> dict[str, Any]:
    """The map's known fields.

    strict: refuse unknown names. Requests are strict (a wish the worker does not know must not be
    dropped silently); replies are not, so that a newer worker may say more.
    """
    if not isinstance(data, Mapping):
        raise fail(what, "a map", data)
    for key in data:
        if not isinstance(key, str):
            raise fail(f"{what}'s field name", "text", key)
        if strict and key not in known:
            raise SchemaError(
                f"{what} has no field {key[:60]!r}.",
                hint="Known fields: " + ", ".join(known) + ".",
            )
    return {key: data[key] for key in known if key in data}


def need(what: str, data: Mapping[str, Any], *names: str) -> None:
    """Refuse a map that lacks one of `names`."""
    missing = [name for name in names if name not in data]
    if missing:
        raise SchemaError(f"{what} lacks the field {', '.join(missing)}.")
