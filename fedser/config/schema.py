"""Settings that know their own bounds: pydantic models whose complaints say which key, what it must be, what is near.

A bound stands beside the field it is about, once; the sentence that a user reads is made from it.
"""

import difflib
import json
import types
import typing
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import annotated_types
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from fedser.errors import InputError

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class Must(str):
    """The words of a complaint, `must be …`, where a field's type says too little."""


Names = Annotated[
    tuple[str | None, ...],
    BeforeValidator(
        lambda value: (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value
    ),
    Must("must be a list of names, e.g. [fgsm,pgd]"),
]


class Group(BaseModel):
    """A section of the configuration: immutable, no unknown keys, no NaN, nothing converted but int to float."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)


def parse(model: type[Group], values: dict, path: str = "") -> Any:
    """`values`, as YAML gives them, as that model. Raises InputError for the first that does not fit.

    By way of JSON, whose strict mode takes a list for a tuple and an int for a float, and nothing else for another.
    """
    try:
        return model.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InputError(_complaint(model, first, path)) from None


def _complaint(model: type[Group], error: dict, path: str) -> str:
    """One line for pydantic's error: the key, its value, what it must be."""
    annotation, keys = _field(model, error["loc"])
    key = path + ".".join(map(str, keys))
    if isinstance(failure := error.get("ctx", {}).get("error"), InputError):
        return str(failure)
    if error["type"] == "extra_forbidden":
        return unknown_key(key, annotation.model_fields if _is_group(annotation) else ())
    if error["type"] == "missing":
        return f"The configuration lacks {key}: it was deleted, or set to null above it."
    return f"{key}={shown(error['input'])} {must(annotation)}."


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The sentence for a key that does not exist, with the nearest one that does."""
    place, _, last = key.rpartition(".")
    near = difflib.get_close_matches(last, list(known), n=1, cutoff=0.5)
    nearest = f" Did you mean '{f'{place}.' * bool(place)}{near[0]}'?" if near else ""
    return f"There is no key '{key}'.{nearest} There are: {', '.join(known)}."


def shown(value: Any) -> str:
    """A value as it is written in YAML: null, true, [a,b]."""
    if isinstance(value, str | float):
        return str(value)
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).replace('"', "")


def _field(model: Any, loc: tuple) -> tuple[Any, list]:
    """The annotation at the end of an error's place, and the keys that lead there (without names of union branches)."""
    annotation, keys = model, []
    for position, key in enumerate(loc):
        group = _group_of(annotation)
        if group is not None and key in group.model_fields:
            field = group.model_fields[key]
            annotation = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
        elif group is not None and position == len(loc) - 1:  # an unknown key
            annotation = group
        elif group is not None:
            break
        elif isinstance(key, int):  # a place in a list
            if (item := _item(annotation)) is None:
                break
            annotation = item
            keys[-1] = f"{keys[-1]}[{key}]"
            continue
        elif typing.get_origin(_bare(annotation)) is dict:
            annotation = typing.get_args(_bare(annotation))[1]
        else:
            break
        keys.append(key)
    return annotation, keys


def _item(annotation: Any) -> Any:
    """The annotation of a list's items; None where there is none, or the list itself says what it must be."""
    metadata = getattr(annotation, "__metadata__", ())
    arguments = [part for option in _options(annotation) for part in typing.get_args(_bare(option)) if part is not ...]
    return arguments[0] if len(arguments) == 1 and not any(isinstance(part, Must) for part in metadata) else None


def _bare(annotation: Any) -> Any:
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) is Annotated else annotation


def _is_group(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _group_of(annotation: Any) -> type[BaseModel] | None:
    """The model that an annotation is, or may be beside null."""
    choices = [annotation, *(_options(annotation) if not _is_group(annotation) else ())]
    return next((choice for choice in choices if _is_group(choice)), None)


def _options(annotation: Any) -> tuple:
    """The alternatives of `A | B`, or the annotation alone."""
    bare = _bare(annotation)
    return typing.get_args(bare) if typing.get_origin(bare) in (types.UnionType, typing.Union) else (bare,)


def must(annotation: Any) -> str:
    """The words of a complaint about a value of this annotation: 'must be a whole number of at least 1'."""
    metadata = annotation.__metadata__ if typing.get_origin(annotation) is Annotated else ()
    if words := next((item for item in metadata if isinstance(item, Must)), None):
        return words
    options = _options(annotation)
    null = ", or null" if type(None) in options else ""
    options = [option for option in options if option is not type(None)]
    if len(options) == 1 and not metadata and typing.get_origin(options[0]) is Annotated:
        return must(options[0]) + null
    return " or ".join(_must_be(_bare(option), _bounds(metadata)) for option in options) + null


def _must_be(kind: Any, bounds: dict) -> str:
    if typing.get_origin(kind) is Literal:
        return f"must be one of {', '.join(map(shown, typing.get_args(kind)))}"
    if kind is int:
        return f"must be a whole number{_limits(bounds)}"
    if kind is float:
        return _number(bounds)
    if _group_of(kind):
        return f"must have the keys {', '.join(kind.model_fields)}"
    words = {bool: "true or false", str: "a word", dict: "keys and values", list: "a list", tuple: "a list"}
    plain = typing.get_origin(kind) or kind
    return f"must be {words.get(plain, getattr(plain, '__name__', plain))}"


def _number(bounds: dict) -> str:
    match bounds:
        case {"ge": 0, "le": 1} | {"gt": 0, "lt": 1}:
            return "must lie between 0 and 1"
        case {"gt": 0, "le": limit}:
            return f"must be greater than 0 and at most {limit:g}"
        case {"gt": 0}:
            return "must be greater than 0 and finite"
    return f"must be a finite number{_limits(bounds)}"


def _limits(bounds: dict) -> str:
    words = {"ge": "of at least", "gt": "greater than", "le": "at most", "lt": "less than"}
    limits = [f"{word} {bounds[key]:g}" for key, word in words.items() if key in bounds]
    return f" {' and '.join(limits)}" if limits else ""


def _bounds(metadata: Iterable) -> dict:
    """{"ge": 1, …} of an annotation's metadata."""
    found = {}
    for item in metadata:
        parts = getattr(item, "metadata", [item])  # a pydantic Field holds its constraints inside
        for part in parts:
            if isinstance(part, annotated_types.Ge | annotated_types.Gt | annotated_types.Le | annotated_types.Lt):
                found |= {key: getattr(part, key) for key in ("ge", "gt", "le", "lt") if hasattr(part, key)}
    return found
