"""Sizes that a program knows only by symbols, such as `Mul(Integer(2), Symbol('s77', positive=True, integer=True))`.

torch.export gives these texts to sympy's `sympify`, which runs them as Python. So each is parsed here (never run), held against a list of the
functions that torch writes, bounded in what it can grow to, and written anew from its tree.
"""

from __future__ import annotations

import ast
import functools
import re

from worker.formats.json_checks import Place, refuse

MAX_CHARS, MAX_NODES, MAX_BITS = 4096, 400, 4096

SYMBOL = re.compile(r"(s|u|i|zf|zuf|zi)\d{1,6}")
"""How torch names symbols: backed and unbacked, of integers and of floats."""

_FUNCTIONS = frozenset(
    """Add Mul Min Max Mod PythonMod FloorDiv CleanDiv CeilDiv ModularIndexing IntTrueDiv FloatTrueDiv ToFloat TruncToInt FloorToInt CeilToInt RoundToInt
    TruncToFloat Identity Abs Where Equality Unequality StrictLessThan LessThan StrictGreaterThan GreaterThan Eq Ne Lt Le Gt Ge And Or Not""".split()
)
_NAMES = frozenset(("true", "false", "oo", "int_oo"))
_ASSUMPTIONS = frozenset("integer positive nonnegative negative nonpositive nonzero zero real finite extended_real".split())
_DECIMAL = re.compile(r"-?\d{1,40}(\.\d{0,40})?(e[+-]?\d{1,3})?")
_POWERS = ("Pow", "PowByNatural")
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod)


class _Unknown(ValueError):
    """Why an expression is not taken."""


def check_expression(value: object, at: Place) -> str:
    """The same expression, written from its tree.

    Raises:
        InputRefused: unsafe-pt2 for anything but symbols, numbers and known functions of them, or for what could grow beyond MAX_BITS bits.
    """
    if type(value) is not str or len(value) > MAX_CHARS:
        refuse(f"a symbolic size is no text of at most {MAX_CHARS} characters", at, "unsafe-pt2")
    try:
        return _clean(value)
    except _Unknown as e:
        refuse(str(e), at, "unsafe-pt2")


@functools.lru_cache(maxsize=10_000)
def _clean(value: str) -> str:
    """Most sizes of a program are the same few expressions."""
    try:
        tree = ast.parse(value, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise _Unknown(f"{ascii(value[:80])} is no expression") from None
    if sum(1 for _ in ast.walk(tree)) > MAX_NODES:
        raise _Unknown(f"the expression {ascii(value[:80])} has more than {MAX_NODES} parts")
    if _bits(tree.body) > MAX_BITS:
        raise _Unknown(f"the expression {ascii(value[:80])} can grow to more than {MAX_BITS} bits")
    return ast.unparse(tree)


def _bits(node: ast.AST) -> int:
    """How many bits the value can have, taking a symbol for 64."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
        return _number(node.value)
    if isinstance(node, ast.Name) and (node.id in _NAMES or SYMBOL.fullmatch(node.id)):
        return 64
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return _bits(node.operand)
    if isinstance(node, ast.BinOp) and isinstance(node.op, _OPERATORS):
        return 1 + _bits(node.left) + _bits(node.right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return _call(node.func.id, node)
    raise _Unknown(f"{ascii(ast.unparse(node)[:80])} is none of what a symbolic size is made of")


def _number(value: float) -> int:
    if value != value or abs(value) >= 1 << 63:
        raise _Unknown("a number of 64 bits or more stands in a symbolic size")
    return max(1, int(abs(value)).bit_length()) if type(value) is int else 64


def _call(name: str, node: ast.Call) -> int:
    keywords = {k.arg: k.value for k in node.keywords}
    if name == "Symbol":
        known = len(node.args) == 1 and isinstance(node.args[0], ast.Constant) and SYMBOL.fullmatch(str(node.args[0].value))
        if known and keywords.keys() <= _ASSUMPTIONS and all(isinstance(v, ast.Constant) and type(v.value) is bool for v in keywords.values()):
            return 64
    elif name == "Float":
        text = len(node.args) == 1 and isinstance(node.args[0], ast.Constant) and _DECIMAL.fullmatch(str(node.args[0].value))
        if text and keywords.keys() <= {"precision"} and all(isinstance(v, ast.Constant) and v.value == 53 for v in keywords.values()):
            return 64
    elif not keywords and not any(isinstance(a, ast.Starred) for a in node.args):
        if name in ("Integer", "Rational") and 1 <= len(node.args) <= 2 and all(_literal(a) is not None for a in node.args):
            return sum(_number(_literal(a)) for a in node.args)
        if name in _POWERS and len(node.args) == 2 and (exponent := _exponent(node.args[1])) is not None:
            return max(1, exponent) * _bits(node.args[0])
        if name in _FUNCTIONS and 1 <= len(node.args) <= 64:
            return 1 + sum(_bits(a) for a in node.args)
    raise _Unknown(f"{ascii(ast.unparse(node)[:80])} is none of what a symbolic size is made of")


def _literal(node: ast.AST) -> int | None:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = _literal(node.operand)
        return None if inner is None else -inner
    return node.value if isinstance(node, ast.Constant) and type(node.value) is int else None


def _exponent(node: ast.AST) -> int | None:
    """The size of a power's exponent, which is a number; None where it is none."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords and node.args:
        parts = [_literal(a) for a in node.args]
        small = all(p is not None and abs(p) <= 64 for p in parts)
        if small and (node.func.id == "Integer" and len(parts) == 1 or node.func.id == "Rational" and len(parts) == 2):
            return abs(parts[0])
    value = _literal(node)
    return abs(value) if value is not None and abs(value) <= 64 else None
