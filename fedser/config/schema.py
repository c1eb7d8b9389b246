"""Settings that know their own bounds: pydantic models whose complaints say which key, what it must be, what is near.

A bound stands beside the field it is about, once; the sentence that a user reads is made from the model's JSON schema.
"""

import json
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, RootModel, ValidationError, WithJsonSchema
from pydantic.json_schema import GenerateJsonSchema

from fedser.errors import InputError, nearest

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Half = Annotated[float, Field(ge=0, le=0.5)]
Whole = Annotated[int, Field(ge=0)]

RULES = ConfigDict(frozen=True, allow_inf_nan=False, arbitrary_types_allowed=True)
T = TypeVar("T")


def must(words: str) -> WithJsonSchema:
    """The words of a complaint, `must be …`, where a field's type says too little."""
    return WithJsonSchema({"must": words})


def _names(value: Any) -> Any:
    """A list of names without those that mean none; a name alone is a list too."""
    names = [value] if isinstance(value, str) else value
    return tuple(name for name in names if name not in (None, "none")) if isinstance(names, list) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_names), must("must be a list of names, e.g. [fgsm,pgd]")]


class Group(BaseModel):
    """A section of the configuration: immutable, no unknown keys, no NaN, nothing converted but int to float."""

    model_config = RULES | ConfigDict(extra="forbid")


class Value(RootModel[T], Generic[T]):
    """A value of any type, by the same rules."""

    model_config = RULES


class _Schema(GenerateJsonSchema):
    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> dict:
        """Of what YAML can't say, and a component builds from a `_target_`."""
        return {"must": "must be settings with a _target_"}


def parse(model: type[BaseModel], values: Any, path: str = "") -> Any:
    """`values`, as YAML gives them, as that model. Raises InputError for the first that does not fit.

    By way of JSON, whose strict mode takes a list for a tuple and an int for a float, and nothing else for another.
    """
    content = json.dumps(values, default=str)
    try:
        return model.model_validate_json(content, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    raise InputError(_complaint(model, json.loads(content), first, path))


def _complaint(model: type[BaseModel], values: Any, error: dict, path: str) -> str:
    """One line for pydantic's error: the key, its value, what it must be."""
    if isinstance(failure := error.get("ctx", {}).get("error"), InputError):
        return str(failure)
    schema = model.model_json_schema(schema_generator=_Schema)
    part, key, value = _found(_inlined(schema, schema.get("$defs", {})), error["loc"], path, values)
    if error["type"] == "extra_forbidden":
        group, dot, last = key.rpartition(".")
        near = nearest(last, part["properties"], f" Did you mean '{group}{dot}{{}}'?")
        return f"There is no key '{key}'.{near} There are: {', '.join(part['properties'])}."
    if error["type"] == "missing" and isinstance(error["loc"][-1], str):
        return f"The configuration lacks {key}: it was deleted, or set to null above it."
    return f"{key}={shown(value)} {_words(part)}."


def shown(value: Any) -> str:
    """A value as it is written in YAML: null, true, [a,b]."""
    if isinstance(value, str | float):
        return str(value)
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).replace('"', "")


def _inlined(part: Any, definitions: dict) -> Any:
    """A JSON schema with its definitions where it refers to them."""
    if isinstance(part, list):
        return [_inlined(item, definitions) for item in part]
    if not isinstance(part, dict):
        return part
    if "$ref" in part:
        return _inlined(definitions[part["$ref"].rpartition("/")[2]], definitions)
    return {key: _inlined(value, definitions) for key, value in part.items() if key != "$defs"}


def _found(schema: dict, loc: tuple, key: str, value: Any) -> tuple[dict, str, Any]:
    """The part of a schema at an error's place, the key there, `evaluation.sanity.eps_factors[1]`, and its value."""
    for step in loc:
        kind = "array" if isinstance(step, int) else "object"
        node = next((option for option in schema.get("anyOf", [schema]) if option.get("type") == kind), {})
        if kind == "array" and "items" in node:
            schema, key, value = node["items"], f"{key}[{step}]", value[step]
        elif kind == "object" and node:
            inner = node.get("properties", {}).get(step, node.get("additionalProperties"))
            schema = inner if isinstance(inner, dict) else node
            key += step if not key or key[-1] in ". " else f".{step}"
            value = value.get(step)
        else:  # the name of a union's branch, or a list that says itself what it must be
            break
    return schema, key, value


def _words(schema: dict) -> str:
    """What a value of this schema must be: 'must be a whole number of at least 1, or null'."""
    options = schema.get("anyOf", [schema])
    null = ", or null" if {"type": "null"} in options else ""
    return " or ".join(_of_one(option) for option in options if option != {"type": "null"}) + null


def _of_one(schema: dict) -> str:
    match schema:
        case {"must": words}:
            return words
        case {"enum": values}:
            return f"must be one of {', '.join(map(shown, values))}"
        case {"const": value}:
            return f"must be {shown(value)}"
        case {"properties": known}:
            return f"must have the keys {', '.join(known)}"
        case {"prefixItems": items}:
            return f"must be a list of {', '.join(_words(item).removeprefix('must be ') for item in items)}"
        case {"type": "integer"}:
            return f"must be a whole number{_limits(schema)}"
        case {"minimum": 0, "maximum": 1} | {"exclusiveMinimum": 0, "exclusiveMaximum": 1}:
            return "must lie between 0 and 1"
        case {"exclusiveMinimum": 0, "maximum": limit}:
            return f"must be greater than 0 and at most {limit:g}"
        case {"exclusiveMinimum": 0}:
            return "must be greater than 0 and finite"
        case {"type": "number"}:
            return f"must be a finite number{_limits(schema)}"
    words = {"boolean": "true or false", "string": "a word", "object": "keys and values", "array": "a list"}
    return f"must be {words.get(schema.get('type'), 'of another kind')}"


def _limits(schema: dict) -> str:
    words = {
        "minimum": "of at least",
        "exclusiveMinimum": "greater than",
        "maximum": "at most",
        "exclusiveMaximum": "less than",
    }
    limits = [f"{word} {schema[key]:g}" for key, word in words.items() if key in schema]
    return f" {' and '.join(limits)}" if limits else ""
