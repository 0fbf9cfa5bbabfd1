"""Symbolic sizes: what torch writes is taken and means the same, and nothing else is."""

from __future__ import annotations

import ast
import time

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import InputRefused
from worker.formats.json_checks import TOP
from worker.formats.pt2_expressions import MAX_CHARS, check_expression

ATOMS = st.one_of(st.sampled_from(["Symbol('s0', integer=True, positive=True)", "Symbol('u3', integer=True)"]), st.integers(-9, 9).map(lambda i: f"Integer({i})"))
POWERS = st.one_of(ATOMS, ATOMS.map(lambda atom: f"Pow({atom}, Integer(3))"))
EXPRESSIONS = st.recursive(POWERS, lambda inner: st.tuples(st.sampled_from(["Add", "Mul", "Max", "Min"]), inner, inner).map(lambda t: f"{t[0]}({t[1]}, {t[2]})"), max_leaves=6)


@settings(max_examples=60, deadline=None)
@given(EXPRESSIONS)
def test_what_sympy_writes_comes_back(text):
    written = sympy.srepr(sympy.sympify(text))
    assert sympy.sympify(check_expression(written, TOP)) == sympy.sympify(written)  # which may be simpler than what was written


@given(st.text(max_size=60))
def test_any_text_is_refused_or_made_of_what_is_known(text):
    try:
        clean = check_expression(text, TOP)
    except InputRefused as e:
        assert e.type == "unsafe-pt2"
        return
    assert not {type(n) for n in ast.walk(ast.parse(clean, mode="eval"))} & {ast.Attribute, ast.Subscript, ast.Lambda, ast.GeneratorExp, ast.JoinedStr, ast.IfExp}


@pytest.mark.parametrize(
    "text",
    [
        "FloorDiv(Symbol('s77', integer=True), Integer(2))",
        "Equality(Mod(Symbol('s1', positive=True, integer=True), Integer(8)), Integer(0))",
        "Mul(Rational(1, 2), Add(Symbol('s1'), Integer(-1)))",
        "Pow(Symbol('s1', positive=True, integer=True), Rational(1, 2))",
        "Float('0.5', precision=53)",
        "2*s0 + 1",
        "true",
        "-s3",
    ],
)
def test_taken(text):
    assert ast.dump(ast.parse(check_expression(text, TOP))) == ast.dump(ast.parse(text))


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')", "print", "().__class__", "s0.func", "s0[0]", "lambda: s0", "[s0 for s0 in s1]", "Symbol(f'{s0}')", "Symbol('x')", "Symbol('s0; x')", "Symbol('s0', integer=s1)",
        "Symbol('s0', commutative=True)", "Symbol(*s0)", "Integer('1')", "Integer(2**80)", "Integer(99999999999999999999)", "Float('1e999999999')", "Float('0.5', precision=100000000)",
        "Pow(s0, s1)", "Pow(Integer(2), Integer(65))", "Pow(Pow(Pow(Integer(9), Integer(64)), Integer(64)), Integer(64))", "9**9", "s0 if s1 else s2", "Function('f')(s0)", "Add", "Add(x=1)",
        "Lambda(s0, s0)", "sympify('s0')", "s0 @ s1", "s0 << 3", "'s0'", "None", "...", "1j", "", "(", "Add(" * 300, "s0 + " * 500 + "s0", "1e400",
    ],
)  # fmt: skip
def test_refused_at_once(text):
    began = time.process_time()
    with pytest.raises(InputRefused) as refusal:
        check_expression(text, TOP)
    assert refusal.value.type == "unsafe-pt2" and time.process_time() - began < 0.5


@pytest.mark.parametrize("value", [None, 3, ["s0"], {"s0": 1}, "s0" + " " * MAX_CHARS])
def test_no_text_of_a_size_that_is_taken(value):
    with pytest.raises(InputRefused):
        check_expression(value, TOP)
