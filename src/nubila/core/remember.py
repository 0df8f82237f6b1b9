"""Compute once per argument: functools.cache with the types of what it wraps."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

P = ParamSpec("P")
T = TypeVar("T")


def remembered(fn: Callable[P, T]) -> Callable[P, T]:
    """Keep every answer for the life of the process: for pure functions of few different arguments.

    Declarations (classes) are such arguments; the type of functools.cache does not take them.
    """
    return cast(Callable[P, T], functools.cache(fn))
