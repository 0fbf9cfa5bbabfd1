"""`scale_search.search` of integer levels and the codes under what it finds, in one pass over a matrix, for GPUs. Bits equal the reference: integers are
summed in any order, floats as `sums` says, divisions are IEEE, and nothing is fused.

    a program         `ROWS` groups of `SIZE` values, one after another in memory
    float sums        16 lanes, 16 values at a time, then the tree; blocks of 128 one after another

Only what compiles it (`triton_compiling`) and tests import this file, for it imports triton.
"""

from __future__ import annotations

import triton
import triton.language as tl

_UNIT = tl.constexpr(32767)
_HALF_UNIT = tl.constexpr(1 << 14)
_MAGIC = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding it rounds what lies within 2^22 half to even
_TINY = tl.constexpr(1.1754943508222875e-38)


@triton.jit
def _nearest(x, low, high):
    return tl.minimum(tl.maximum(x, low), high) + _MAGIC - _MAGIC


@triton.jit
def _tree(lanes, ROWS: tl.constexpr):
    """[ROWS, 16] -> [ROWS]: 8 + 8, 4 + 4, 2 + 2, 1 + 1."""
    lanes = tl.sum(tl.reshape(lanes, (ROWS, 2, 8)), 1)
    lanes = tl.sum(tl.reshape(lanes, (ROWS, 2, 4)), 1)
    lanes = tl.sum(tl.reshape(lanes, (ROWS, 2, 2)), 1)
    return tl.sum(lanes, 1)


@triton.jit
def _stored(scale, kind, most, eps):
    """See `uniform.stored`: kind 0 float32, 1 float16, 2 bfloat16."""
    scale = tl.minimum(tl.maximum(scale, -most), most)
    kept = tl.where(kind == 1, scale.to(tl.float16).to(tl.float32), tl.where(kind == 2, scale.to(tl.bfloat16).to(tl.float32), scale))
    return tl.where(kept == 0, tl.where(scale < 0, -eps, eps), kept)


@triton.jit
def _code(u, step, shift, sign, low, high):
    """Of u (15 bits) the code of a candidate, int32."""
    rounded = (((u * step + _HALF_UNIT) >> 15) + (1 << (shift - 1))) >> shift
    return tl.minimum(tl.maximum(sign * rounded, low), high)


@triton.jit
def _best(u, steps, shift, low, high, COUNT: tl.constexpr, ROWS: tl.constexpr):
    """The step and the sign, [ROWS], of the codes whose (codes.u)^2 / codes.codes is largest; the first of equal ones."""
    top = tl.full((ROWS,), -1.0, tl.float64)
    best_step, best_sign = tl.zeros((ROWS,), tl.int32), tl.zeros((ROWS,), tl.int32)
    for i in range(2 * COUNT):
        sign = tl.where(i < COUNT, 1, -1)
        step = tl.load(steps + i % COUNT)
        codes = _code(u, step, shift, sign, low, high)
        own, fit = tl.sum(codes * codes, 1).to(tl.float64), tl.sum(codes * u, 1).to(tl.float64)
        score = tl.where(own == 0, 0.0, fit * fit / tl.where(own == 0, 1.0, own))
        better = score > top
        top = tl.where(better, score, top)
        best_step, best_sign = tl.where(better, step, best_step), tl.where(better, sign, best_sign)
    return best_step, best_sign


@triton.jit
def search_and_round(x, codes, scales, steps, groups, low, high, shift, kind, most, eps, SIZE: tl.constexpr, ROWS: tl.constexpr, COUNT: tl.constexpr):
    """Args:
        x: float32, float16 or bfloat16 [groups, SIZE]; SIZE a power of two from 16 to 256.
        codes: int8, shaped as `x`. scales: float32 [groups], as they are read back.
        steps, shift: int32 [COUNT] and a number: `scale_search.multipliers`.
        low, high: the least and the largest code.
        kind, most, eps: the dtype that stores scales, its largest number (at most float32's), and what a 0 becomes.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there = row < groups
    whole = row[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    lane = row[:, None] * SIZE + tl.arange(0, 16)[None, :]
    low_float, high_float = low.to(tl.float32), high.to(tl.float32)
    tile = tl.load(x + whole, mask=there[:, None], other=0.0).to(tl.float32)
    top = tl.max(tl.abs(tile), 1)
    safe = tl.where(top == 0, 1.0, top)
    unit = tl.div_rn(tile, tl.broadcast_to(safe[:, None], (ROWS, SIZE)))
    u = (unit * _UNIT + _MAGIC - _MAGIC).to(tl.int32)
    step, sign = _best(u, steps, shift, low, high, COUNT, ROWS)
    safe_lanes = tl.broadcast_to(safe[:, None], (ROWS, 16))

    energy, fit = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32)
    for block in tl.static_range((SIZE + 127) // 128):
        own_lanes, fit_lanes = tl.zeros((ROWS, 16), tl.float32), tl.zeros((ROWS, 16), tl.float32)
        for i in range(min(SIZE, 128) // 16):
            part = tl.div_rn(tl.load(x + lane + block * 128 + i * 16, mask=there[:, None], other=0.0).to(tl.float32), safe_lanes)
            code = _code((part * _UNIT + _MAGIC - _MAGIC).to(tl.int32), step[:, None], shift, sign[:, None], low, high).to(tl.float32)
            own_lanes += code * code
            fit_lanes += code * part
        energy += _tree(own_lanes, ROWS)
        fit += _tree(fit_lanes, ROWS)
    scale = _stored(tl.div_rn(fit, tl.where(energy == 0, 1.0, energy)) * safe, kind, most, eps)

    energy, fit = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32)
    scale_lanes = tl.broadcast_to(scale[:, None], (ROWS, 16))
    for block in tl.static_range((SIZE + 127) // 128):
        own_lanes, fit_lanes = tl.zeros((ROWS, 16), tl.float32), tl.zeros((ROWS, 16), tl.float32)
        for i in range(min(SIZE, 128) // 16):
            part = tl.load(x + lane + block * 128 + i * 16, mask=there[:, None], other=0.0).to(tl.float32)
            code = _nearest(tl.div_rn(part, scale_lanes), low_float, high_float)
            own_lanes += code * code
            fit_lanes += code * tl.div_rn(part, safe_lanes)
        energy += _tree(own_lanes, ROWS)
        fit += _tree(fit_lanes, ROWS)
    again = _stored(tl.div_rn(fit, tl.where(energy == 0, 1.0, energy)) * safe, kind, most, eps)

    near, near_again = tl.div_rn(scale, safe), tl.div_rn(again, safe)
    near, near_again = tl.where(near == 0, _TINY, near), tl.where(near_again == 0, _TINY, near_again)
    near_lanes, again_lanes = tl.broadcast_to(near[:, None], (ROWS, 16)), tl.broadcast_to(near_again[:, None], (ROWS, 16))
    error, error_again = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32)
    for block in tl.static_range((SIZE + 127) // 128):
        lanes, lanes_again = tl.zeros((ROWS, 16), tl.float32), tl.zeros((ROWS, 16), tl.float32)
        for i in range(min(SIZE, 128) // 16):
            part = tl.div_rn(tl.load(x + lane + block * 128 + i * 16, mask=there[:, None], other=0.0).to(tl.float32), safe_lanes)
            left = _nearest(tl.div_rn(part, near_lanes), low_float, high_float) * near_lanes - part
            left_again = _nearest(tl.div_rn(part, again_lanes), low_float, high_float) * again_lanes - part
            lanes += left * left
            lanes_again += left_again * left_again
        error += _tree(lanes, ROWS)
        error_again += _tree(lanes_again, ROWS)

    found = tl.where(error_again < error, again, scale)
    found = tl.where(top == 0, eps, found)
    tl.store(scales + row, found, mask=there)
    tile = tl.load(x + whole, mask=there[:, None], other=0.0).to(tl.float32)
    code = _nearest(tl.div_rn(tile, tl.broadcast_to(found[:, None], (ROWS, SIZE))), low_float, high_float)
    tl.store(codes + whole, code.to(tl.int8), mask=there[:, None])
