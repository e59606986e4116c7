"""Settings as models: each field with its default, range, unit and a sentence, said once and checked."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails
from typing_extensions import Self

from mdl_physpre.errors import ConfigError, nearest

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)


def setting(default: Any, text: str, unit: str = "", **limits: Any) -> Any:
    """A field of :class:`Settings`.

    Parameters
    ----------
    default : its value where none is given; ``...`` where one must be.
    text : what it does: a sentence, without its default, range and unit.
    unit : such as ``Å`` or ``1/fs``.
    limits : ``gt``, ``ge``, ``lt``, ``le``, ``min_length`` and the like, as pydantic has them.
    """
    return Field(default, description=text, json_schema_extra={"unit": unit} if unit else None, **limits)


class _Checked(ModelMetaclass):
    """Raises ConfigError where a model is built from wrong values; inside another model, that one says it."""

    def __call__(cls, *args: Any, **values: Any) -> Any:
        try:
            return super().__call__(*args, **values)
        except ValidationError as error:
            section = getattr(cls, "SECTION", "")
            raise ConfigError(explained(error, cls, section)) from None  # type: ignore[arg-type]


class Settings(BaseModel, metaclass=_Checked):
    """Settings of one subject. An unknown or wrong value raises ConfigError, with the key and what is expected.

    A class attribute ``SECTION`` stands before the key in such errors: ``dynamics.temperature``. ``LATER`` names the
    settings that came later, with the value that asks for nothing: results of before are known without them.
    """

    LATER: ClassVar[dict[str, Any]] = {}

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    def changed(self, **values: Any) -> Self:
        """The same settings but for some values, checked. Raises ConfigError as the constructor does."""
        return type(self)(**{**dict(self), **values})

    def asked(self, mode: Literal["python", "json"] = "python") -> dict[str, Any]:
        """All values but those of ``LATER`` settings that ask for nothing."""
        return {k: v for k, v in self.model_dump(mode=mode).items() if (k, v) not in self.LATER.items()}


def explained(error: ValidationError, model: type[BaseModel], section: str = "") -> str:
    """The mistakes in the values of a model, a line each: the key, what was found, what is expected."""
    return "\n  ".join(mistakes(error, model, section))


def mistakes(error: ValidationError, model: type[BaseModel], section: str = "") -> list[str]:
    """The lines of :func:`explained`. Of a value that may be of several kinds, all of these are in one."""
    found: dict[str, list[str]] = {}
    for problem in error.errors():
        said, _, expected = _line(problem, model, section).partition("; expected ")
        found.setdefault(said, []).extend([expected] if expected else [])
    either = {said: " or ".join(dict.fromkeys(kinds)) for said, kinds in found.items()}
    return [f"{said}; expected {kinds}" if kinds else said for said, kinds in either.items()]


EXPECTED = {
    "float_parsing": "a number", "float_type": "a number", "finite_number": "a finite number",
    "int_parsing": "a whole number", "int_type": "a whole number", "int_from_float": "a whole number",
    "bool_parsing": "true or false", "bool_type": "true or false", "string_type": "text",
    "list_type": "a list", "tuple_type": "a list", "model_type": "a section of keys",
    "model_attributes_type": "a section of keys", "dict_type": "a section of keys", "literal_error": "{expected}",
    "greater_than": "more than {gt:g}", "greater_than_equal": "at least {ge:g}", "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
}  # fmt: skip
"""What pydantic calls mistakes, in our words."""
KINDS = re.compile(r"^(str|int|float|bool|none|constrained-.*|function-.*|.*\[.*)$")
"""What pydantic puts between keys for the kinds that a value may be of."""


def _line(problem: ErrorDetails, model: type[BaseModel], section: str) -> str:
    location = [str(part) for part in problem["loc"] if not KINDS.match(str(part))]
    key = ".".join([*([section] if section else []), *location]) or model.__name__
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key; {nearest(location[-1], _known_keys(location[:-1], model))}"
    if problem["type"] == "missing":
        return f"{key}: missing; it has no default"
    said = problem["msg"].removeprefix("Value error, ")
    if problem["type"] in EXPECTED:
        said = f"expected {EXPECTED[problem['type']].format(**problem.get('ctx', {}))}"
    return f"{key}: found {problem.get('input')!r}; {said}" if location else f"{key}: {said}"


def _known_keys(location: list[str], model: Any) -> list[str]:
    for part in location:
        field = model.model_fields.get(part) if hasattr(model, "model_fields") else None
        model = field.annotation if field else None
        model = next((one for one in get_args(model) if hasattr(one, "model_fields")), model)
    return list(model.model_fields) if hasattr(model, "model_fields") else []
