"""What every table of the configuration has in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Table(BaseModel):
    """
    One table of config.toml: frozen, and without a place for keys nobody knows.

    Strict, so that ``port = true`` or ``"8080"`` is a mistake and not a guess. Mistakes are written by
    ``settings.mistakes``; pydantic's own text repeats the input, which may be a secret.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        validate_default=False,
    )
