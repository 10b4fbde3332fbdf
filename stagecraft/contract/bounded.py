"""The numbers that parameters are, with the bounds that every stage means by their names."""

from typing import Annotated

from pydantic import Field

Count = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]  # NumPy's are below 2**32, and a part of a run adds its number
Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
AboveZero = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
