"""Expressions without doubt, and negated at single tests only: what chains are written from.

The kernel knows two answers where an expression may have three (Kleene's logic: a doubt is
neither). Brought to this form, it holds for certain exactly where it does with every doubt
taken for false, and it may hold exactly where it does with every doubt taken for true,
whatever the doubt was negated by.
"""

from __future__ import annotations

from collections.abc import Iterable

from gateway.plan.conditions import ALWAYS, NEVER, All, AnyOf, Doubt, Expression, Not, Test


def normal_form(expression: Expression, *, doubts: bool, negate: bool = False) -> Expression:
    """The expression, or with ``negate`` its contrary, where ``doubts`` is what a doubt says.

    The answer has no ``Doubt``, no ``Not`` but of a ``Test``, and neither ``All`` nor ``AnyOf``
    inside one of its own kind or with fewer than two parts.
    """
    match expression:
        case Doubt():
            return ALWAYS if doubts else NEVER
        case Not(inner):
            return normal_form(inner, doubts=doubts, negate=not negate)
        case Test():
            if expression in (ALWAYS, NEVER):
                return ALWAYS if (expression == ALWAYS) != negate else NEVER
            return Not(expression) if negate else expression
        case All(parts) | AnyOf(parts):
            inside = [normal_form(part, doubts=doubts, negate=negate) for part in parts]
            return all_of(inside) if isinstance(expression, All) != negate else any_of(inside)


def all_of(parts: Iterable[Expression]) -> Expression:
    """Where every part holds; parts are in normal form."""
    flat = [each for part in parts for each in (part.parts if isinstance(part, All) else (part,))]
    kept = tuple(dict.fromkeys(part for part in flat if part != ALWAYS))
    if NEVER in kept:
        return NEVER
    if len(kept) < 2:
        return kept[0] if kept else ALWAYS
    return All(kept)


def any_of(parts: Iterable[Expression]) -> Expression:
    """Where one part holds; parts are in normal form."""
    flat = [e for part in parts for e in (part.choices if isinstance(part, AnyOf) else (part,))]
    kept = tuple(dict.fromkeys(part for part in flat if part != NEVER))
    if ALWAYS in kept:
        return ALWAYS
    if len(kept) < 2:
        return kept[0] if kept else NEVER
    return AnyOf(kept)
