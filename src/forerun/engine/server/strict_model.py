"""What all parts of a body have in common: an unknown field is an error, a wrong type too."""

from typing import Annotated, Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

ItemT = TypeVar("ItemT")
Items = Annotated[list[ItemT], Field(fail_fast=True)]
"""A list whose first wrong item is told, and no other: a body of nothing else would cost a thousand times its size."""


class Strict(BaseModel):
    """A part of a body."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class NullIsAbsent(Strict):
    """A part of a body in which ``null`` stands for a field that is not given."""

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        fields = cast("dict[str, Any]", data)
        return {name: value for name, value in fields.items() if value is not None}
