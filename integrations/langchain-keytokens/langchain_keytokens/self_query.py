"""KeyTokensTranslator: filters that a language model wrote, in the language of our index."""

from __future__ import annotations

from typing import Any

from langchain_core.structured_query import Comparator, Comparison, Operation, Operator, StructuredQuery, Visitor

__all__ = ["KeyTokensTranslator"]


class KeyTokensTranslator(Visitor):
    """Translates the structured queries of a ``SelfQueryRetriever`` over a ``KeyTokensVectorStore``.

    Instantiate:
        .. code-block:: python

            SelfQueryRetriever.from_llm(
                model, store, "Abstracts", attributes, structured_query_translator=KeyTokensTranslator()
            )
    """

    allowed_comparators = (  # type: ignore[assignment]  # enums of strings, which mypy takes for strings
        Comparator.EQ,
        Comparator.NE,
        Comparator.GT,
        Comparator.GTE,
        Comparator.LT,
        Comparator.LTE,
        Comparator.CONTAIN,
        Comparator.IN,
        Comparator.NIN,
    )
    allowed_operators = (Operator.AND, Operator.OR, Operator.NOT)  # type: ignore[assignment]  # likewise

    def visit_operation(self, operation: Operation) -> dict[str, Any]:
        """``$and``, ``$or`` or ``$not``."""
        self._validate_func(operation.operator)
        parts = [argument.accept(self) for argument in operation.arguments]
        if operation.operator is Operator.NOT:
            return {"$not": parts[0] if len(parts) == 1 else {"$and": parts}}
        return {f"${operation.operator.value}": parts}

    def visit_comparison(self, comparison: Comparison) -> dict[str, Any]:
        """A condition on one key; dates as ISO strings."""
        self._validate_func(comparison.comparator)
        value = comparison.value
        if isinstance(value, dict):  # a date or a datetime with its kind
            value = value.get("date", value.get("datetime"))
        name = "contains" if comparison.comparator is Comparator.CONTAIN else comparison.comparator.value
        return {comparison.attribute: {f"${name}": value}}

    def visit_structured_query(self, structured_query: StructuredQuery) -> tuple[str, dict[str, Any]]:
        """The query, and the arguments of the search; ``k`` where the query has a limit."""
        arguments: dict[str, Any] = {}
        if structured_query.filter is not None:
            arguments["filter"] = structured_query.filter.accept(self)
        return structured_query.query, arguments
