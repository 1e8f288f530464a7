"""Fields that several of the workspace's shapes have."""

from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

from contracts.identity import MAX_PAGE
from contracts.values import storable

MAX_NAME = 300
MAX_DESCRIPTION = 5_000

Name = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_NAME),
    AfterValidator(storable),
]
Title = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=500),
    AfterValidator(storable),
]
Description = Annotated[
    str, StringConstraints(max_length=MAX_DESCRIPTION), AfterValidator(storable)
]
Limit = Annotated[int, Field(ge=1, le=MAX_PAGE)]
