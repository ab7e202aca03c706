"""Filters as SQL conditions on a column ``metadata`` of type jsonb and a column ``id``, with parameters."""

from __future__ import annotations

import json
from typing import Any

from st_keytokens.engines.filter_tree import AllOf, AnyOf, Comparison, Condition, Exists, HasId, IsIn, Not

__all__ = ["condition_sql"]

Sql = tuple[str, list[Any]]

_OPERATORS = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}


def condition_sql(condition: Condition) -> Sql:
    """A condition that is true or false, never null, and its parameters for psycopg, in order.

    Keys and values are parameters all of them: none of what a user gave becomes a part of the statement.

    >>> condition_sql(IsIn("language", ("en",)))
    ('metadata @> %s::jsonb', ['{"language": "en"}'])
    >>> condition_sql(Not(Exists("year")))
    ('(NOT metadata ? %s)', ['year'])
    """
    if isinstance(condition, (AllOf, AnyOf)):
        parts = [condition_sql(part) for part in condition.parts]
        if not parts:
            return ("true" if isinstance(condition, AllOf) else "false"), []
        operator = " AND " if isinstance(condition, AllOf) else " OR "
        joined = operator.join(statement for statement, _ in parts)
        return f"({joined})", [parameter for _, parameters in parts for parameter in parameters]
    if isinstance(condition, Not):
        statement, parameters = condition_sql(condition.part)
        return f"(NOT {statement})", parameters
    if isinstance(condition, Exists):
        return "metadata ? %s", [condition.key]
    if isinstance(condition, HasId):
        return "id = ANY(%s::text[])", [list(condition.ids)]
    if isinstance(condition, IsIn):
        # containment finds a scalar under a key by type and value, and one value of it in an index
        held = [json.dumps({condition.key: value}, ensure_ascii=False) for value in condition.values]
        return ("metadata @> %s::jsonb", held) if len(held) == 1 else ("metadata @> ANY(%s::jsonb[])", [held])
    return _comparison(condition)


def _comparison(condition: Comparison) -> Sql:
    """A number among numbers of any size, or a string among strings by code point, which is the order of its bytes."""
    if isinstance(condition.bound, str):
        kind, value, bound = "string", 'metadata ->> %s COLLATE "C"', "%s"
    else:
        kind, value, bound = "number", "(metadata ->> %s)::numeric", "%s::numeric"
    compared = f"{value} {_OPERATORS[condition.operator]} {bound}"
    statement = f"(CASE WHEN jsonb_typeof(metadata -> %s) = '{kind}' THEN {compared} ELSE false END)"
    return statement, [condition.key, condition.key, str(condition.bound)]
