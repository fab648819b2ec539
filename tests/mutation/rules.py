"""What counts as a check, by the shape of the code, and how each is taken out of it.

A rule looks at one node of a syntax tree and yields what it would do; nothing here knows a file.
"""

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

SHIFT = "_shifted_by_the_mutant"  # a function that whoever runs a mutant puts into its module
_ENDS = (ast.Raise, ast.Return, ast.Continue)
_LIMIT = re.compile(r"[A-Z_]+_(MIN|MAX)")  # names of ceilings
_BYTES = {"bytes", "encode", "u16", "to_bytes", "pack", "digest", "join"}  # calls
_BYTES |= {"body", "ctx", "head", "header", "public", "shared", "signature", "transcript"}

Edit = tuple[str, str, Callable[[], object]]  # the check, what becomes of it, doing it


@dataclass(frozen=True)
class Spot:
    """A node, where it stands, and how to put another in its place."""

    node: ast.AST
    parents: tuple[ast.AST, ...]  # outermost first
    replace: Callable[[ast.AST], object]

    @property
    def line(self) -> int:
        """Where it begins; a filter begins with its variable."""
        node = self.node.target if isinstance(self.node, ast.comprehension) else self.node
        return int(getattr(node, "lineno", 0))


def spots(node: ast.AST, parents: tuple[ast.AST, ...] = ()) -> Iterator[Spot]:
    """Walk in order; annotations, decorators and defaults hold no checks."""
    for name, value in ast.iter_fields(node):
        if name in {"annotation", "returns", "decorator_list"} or isinstance(value, ast.arguments):
            continue
        for at, child in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(child, ast.AST):
                put = partial(value.__setitem__, at) if isinstance(value, list) else None
                inside = (*parents, node)
                yield Spot(child, inside, put or partial(setattr, node, name))
                yield from spots(child, inside)


def edits(spot: Spot) -> Iterator[Edit]:
    """Yield all that the rules would do to a node."""
    for rule in _RULES:
        yield from rule(spot)


def short(node: ast.AST | None) -> str:
    """Return the source of a node on one line: of a loop its head, of an error its kind."""
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        return f"raise {ast.unparse(node.exc.func)}"
    if isinstance(node, ast.For):
        return f"for {short(node.target)} in {short(node.iter)}"
    text = " ".join(ast.unparse(node).split()) if node is not None else ""
    return text if len(text) <= 100 else text[:97] + "..."


def refuses(spot: Spot) -> bool:
    """Say whether a node is part of a refusal: of an error, of a yes or no, of a ceiling."""
    statement = _statement(spot)
    chain = (*spot.parents, spot.node)
    guard = isinstance(statement, ast.If) and isinstance(statement.body[-1], ast.Raise)
    handled = any(isinstance(one, ast.ExceptHandler | ast.Raise) for one in chain)
    ceiling = not any(isinstance(one, ast.FunctionDef) for one in chain)
    return guard or handled or ceiling or _answers(spot)


# --- rules --------------------------------------------------------------------------------------


def _branches(spot: Spot) -> Iterator[Edit]:
    """A condition that ends the step, a branch, a filter."""
    node = spot.node
    if isinstance(node, ast.If | ast.IfExp):
        text, ways = short(node), [("never", False), ("always", True)]
        if isinstance(node, ast.If):
            text = f"if {short(node.test)}: {short(node.body[-1])}"
            if isinstance(node.body[-1], _ENDS) and not node.orelse:
                ways = ways[:1]  # to end always is no check that is missing
        for change, value in ways:
            yield text, change, partial(setattr, node, "test", ast.Constant(value))
    if isinstance(node, ast.comprehension):
        for at, test in enumerate(node.ifs):
            yield f"... if {short(test)}", "always", partial(node.ifs.pop, at)


def _raises(spot: Spot) -> Iterator[Edit]:
    """A refusal that no condition of its own stands before, an error that is caught."""
    node, parent = spot.node, spot.parents[-1]
    if isinstance(node, ast.Raise) and not (isinstance(parent, ast.If) and node in parent.body):
        yield short(node), "removed", partial(spot.replace, ast.Pass())
    if isinstance(node, ast.ExceptHandler) and node.type is not None:
        kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        text = f"except {short(node.type)}: {short(node.body[-1])}"
        for at, kind in enumerate(kinds):
            left = ast.Tuple([*kinds[:at], *kinds[at + 1 :]], ast.Load())
            yield text, f"without {short(kind)}", partial(setattr, node, "type", left)


def _operands(spot: Spot) -> Iterator[Edit]:
    """One of several conditions, one of several limits, one row of a table of checks."""
    node = spot.node
    if isinstance(node, ast.BoolOp):
        for at, one in enumerate(node.values):
            rest = [*node.values[:at], *node.values[at + 1 :]]
            new = rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)
            yield short(node), f"without {short(one)}", partial(spot.replace, new)
    if isinstance(node, ast.Compare) and len(node.ops) == 2:
        low, middle, high = node.left, *node.comparators
        upper = ast.Compare(middle, node.ops[1:], [high])
        lower = ast.Compare(low, node.ops[:1], [middle])
        yield short(node), f"without {short(low)}", partial(spot.replace, upper)
        yield short(node), f"without {short(high)}", partial(spot.replace, lower)
    several: list[ast.expr] = []
    if isinstance(node, ast.Call) and short(node.func) in {"max", "min"} and len(node.args) > 1:
        several = node.args
    rows = isinstance(node, ast.For) and isinstance(node.iter, ast.Tuple)
    if rows and any(isinstance(one, ast.Raise) for one in ast.walk(node)):
        several = node.iter.elts  # type: ignore[attr-defined]
    for at, one in enumerate(several):
        yield short(node), f"without {short(one)}", partial(several.pop, at)


def _together(spot: Spot) -> Iterator[Edit]:
    """One of several values that are compared as tuples."""
    node = spot.node
    if not isinstance(node, ast.Compare) or not isinstance(node.ops[0], ast.Eq | ast.NotEq):
        return
    sides = [node.left, node.comparators[0]]
    tuples = [side for side in sides if isinstance(side, ast.Tuple) and len(side.elts) > 1]
    if not tuples:
        return
    for at, one in enumerate(tuples[0].elts):
        edit: Callable[[], object]
        if len(tuples) == 2:
            edit = partial(lambda at: [side.elts.pop(at) for side in tuples], at)
        else:  # the other side is a value: its own entry takes the place, and always agrees
            other = next(side for side in sides if side is not tuples[0])
            same = ast.Subscript(other, ast.Constant(at), ast.Load())
            edit = partial(tuples[0].elts.__setitem__, at, same)
        yield short(node), f"without {short(one)}", edit


def _bounds(spot: Spot) -> Iterator[Edit]:
    """A bound of a condition that is off by one, in either direction; a ceiling likewise."""
    node = spot.node
    if isinstance(node, ast.Compare) and _decides(spot):
        for at, (op, bound) in enumerate(zip(node.ops, node.comparators, strict=True)):
            endless = isinstance(bound, ast.Call) and short(bound.func) in {"set", "float"}
            if isinstance(op, ast.Lt | ast.LtE | ast.Gt | ast.GtE) and not endless:
                for by in (-1, 1):
                    new = ast.Call(ast.Name(SHIFT, ast.Load()), [bound, ast.Constant(by)], [])
                    edit = partial(node.comparators.__setitem__, at, new)
                    yield short(node), f"{short(bound)} {by:+d}", edit
    if isinstance(node, ast.Assign) and isinstance(spot.parents[-1], ast.Module):
        target, value = node.targets[0], node.value  # one, or a row: A_MIN, A_MAX = 3, 100
        pairs = [(target, value, partial(setattr, node, "value"))]
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            puts = (partial(value.elts.__setitem__, at) for at in range(len(value.elts)))
            pairs = list(zip(target.elts, value.elts, puts, strict=True))
        for name, ceiling, put in pairs:
            if _LIMIT.fullmatch(short(name)):
                for by in (-1, 1):
                    edit = partial(put, ast.BinOp(ceiling, ast.Add(), ast.Constant(by)))
                    yield f"{short(name)} = {short(ceiling)}", f"{by:+d}", edit


def _effects(spot: Spot) -> Iterator[Edit]:
    """A call whose value nobody uses (a check, a write), a flag that is set, a yes or no."""
    node = spot.node
    inside = [one for one in spot.parents if isinstance(one, ast.FunctionDef)]
    if not inside:
        return
    flag = isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute)
    flag = flag and isinstance(node.value, ast.Constant) and inside[-1].name != "__init__"  # type: ignore[attr-defined]
    if flag or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        yield short(node), "removed", partial(spot.replace, ast.Pass())
    if isinstance(node, ast.Return) and _answers(spot):
        for value in (False, True):
            edit = partial(setattr, node, "value", ast.Constant(value))
            yield short(node), f"always {value}", edit


def _bindings(spot: Spot) -> Iterator[Edit]:
    """One piece of the bytes that a key, a hash, a tag or a signature is over."""
    node, parent = spot.node, spot.parents[-1]
    pieces = _pieces(node)
    if len(pieces) < 2 or len(_pieces(parent)) > 1:
        return
    numbers = (ast.BinOp, ast.Constant)
    if any(isinstance(one, numbers) and not _is_bytes(one) for one in pieces):
        return  # arithmetic
    if not any(map(_is_bytes, pieces)):
        return
    for at, one in enumerate(pieces):
        new, *rest = [*pieces[:at], *pieces[at + 1 :]]
        for piece in rest:
            new = ast.BinOp(new, ast.Add(), piece)
        yield short(node), f"without {short(one)}", partial(spot.replace, new)


_RULES = (_branches, _raises, _operands, _together, _bounds, _effects, _bindings)


# --- what a node is -----------------------------------------------------------------------------


def _statement(spot: Spot) -> ast.AST:
    """The statement that the node is a part of."""
    chain = (*spot.parents, spot.node)
    return next(one for one in reversed(chain) if isinstance(one, ast.stmt))


def _decides(spot: Spot) -> bool:
    """Whether a comparison is (part of) a condition on which the step ends, an answer, a filter."""
    if any(isinstance(one, ast.IfExp) for one in spot.parents):
        return False
    statement = _statement(spot)
    guard = isinstance(statement, ast.If) and isinstance(statement.body[-1], _ENDS)
    filters = (one for one in spot.parents if isinstance(one, ast.comprehension))
    return guard or _answers(spot) or any(spot.node in one.ifs for one in filters)


def _answers(spot: Spot) -> bool:
    """Whether a node is in what a function of type bool returns, and that is no constant."""
    statement = _statement(spot)
    inside = [one for one in spot.parents if isinstance(one, ast.FunctionDef)]
    if not isinstance(statement, ast.Return) or isinstance(statement.value, ast.Constant):
        return False
    return bool(inside) and short(inside[-1].returns) == "bool"


def _pieces(node: ast.AST) -> list[ast.expr]:
    """What is added up, from left to right."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [*_pieces(node.left), *_pieces(node.right)]
    return [node] if isinstance(node, ast.expr) else []


def _is_bytes(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, bytes)
    return short(node.func if isinstance(node, ast.Call) else node).split(".")[-1] in _BYTES
