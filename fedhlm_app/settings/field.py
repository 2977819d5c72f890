"""How settings are declared: default, meaning, unit, range; and the base of every group."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler


@cache
def kebab(name: str) -> str:
    """Return the outside form of a field's name: `tokens_per_round` is `tokens-per-round`."""
    return name.replace("_", "-")


class Group(BaseModel):
    """A group of settings: frozen, no unknown keys, kebab-case outside and snake_case inside."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=kebab,
        populate_by_name=True,
        protected_namespaces=(),
    )


class OneOf:
    """Annotation of a setting whose values are the names of a registry."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> Any:
        """Let pydantic accept these names alone."""
        return handler.generate_schema(Literal[self.names])


class _Described(Protocol):
    @property
    def words(self) -> str: ...


def said(registry: Mapping[str, _Described]) -> str:
    """What each name of a registry stands for, in one line."""
    return "; ".join(f"{name}: {kind.words}" for name, kind in registry.items())


def setting(
    default: bool | int | float | str,
    description: str,
    *,
    unit: str = "",
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """Declare one setting.

    Parameters
    ----------
    default : bool | int | float | str
        Value when neither environment nor run-config names it.
    description : str
        One sentence without a full stop.
    unit : str
        Unit of a number (`tokens`, `s`, `ms`); empty for names, switches and shares.
    at_least, at_most, above, below : float | None
        Bounds; `above` and `below` are exclusive.

    Returns
    -------
    Any
        A pydantic field; typed `Any` so that it can stand as a default of any type.
    """
    return Field(
        default=default,
        description=description,
        ge=at_least,
        le=at_most,
        gt=above,
        lt=below,
        # A float that is NaN passes no comparison and would slip through the bounds.
        allow_inf_nan=False if isinstance(default, float) else None,
        json_schema_extra={"unit": unit} if unit else None,
    )
