"""What loops over vectors need and Numba does not have: products of small tiles in registers, and powers of two.

The tiles are written in LLVM's own words (llvmlite, which Numba brings), as Numba keeps every array in memory and would
store each partial sum. LLVM splits a vector of 16 numbers on processors whose registers are shorter.
"""

import math
from typing import Any

import numba
import numpy as np
from llvmlite import binding, ir
from numba import extending, float32, int32, int64, types
from numba.core import cgutils

LANES = 16
"""Columns of a tile: so many float32 are a vector."""

N_ROW = 8 if binding.get_host_cpu_features().get("avx512f") else 4
"""Rows of a tile, which stay in registers: a row takes one of 32 with AVX-512, two of 16 with AVX2."""

intrinsic: Any = extending.intrinsic
_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_TAYLOR = tuple(np.float32(math.log(2) ** k / math.factorial(k)) for k in range(8))
_C0, _C1, _C2, _C3, _C4, _C5, _C6, _C7 = _TAYLOR
_ROUND = np.float32(3 << 22)
"""Added to a number below 2^22, it leaves no room for a fraction: the sum's last bits are the rounded number."""


def _tile_product(adds: bool, n_row: int = N_ROW) -> Any:
    """Make the function that fills a tile with a product, or adds the product to it."""

    @intrinsic
    def product(_context, out, out_at, out_step, a, a_at, a_row, a_step, b, b_at, b_step, n):
        """out[r, :] = Σ a[r, t] · b[t, :] over t < n, for the rows r < n_row of a tile of LANES columns.

        Each of the three is a flat float32 array with the place of its first entry. Rows of `out` and `b` are `…_step`
        apart; in `a` those of r are `a_row` and those of t `a_step` apart.
        """
        signature = types.void(out, int64, int64, a, int64, int64, int64, b, int64, int64, int64)

        def generate(context, builder, signature, given):
            out, out_at, out_step, a, a_at, a_row, a_step, b, b_at, b_step, n = given
            types_of = signature.args

            def place(array, kind, at):
                return builder.gep(_start_of(context, builder, kind, array), [at])

            rows = [ir.Constant(ir.IntType(64), r) for r in range(n_row)]
            into, factor, row = (
                place(out, types_of[0], out_at),
                place(a, types_of[3], a_at),
                place(b, types_of[7], b_at),
            )
            targets = [_vector_at(builder, into, builder.mul(r, out_step)) for r in rows]
            sums = [cgutils.alloca_once(builder, _VECTOR) for _ in rows]
            for target, total in zip(targets, sums, strict=True):
                builder.store(builder.load(target, align=4) if adds else ir.Constant(_VECTOR, [0.0] * LANES), total)
            with cgutils.for_range(builder, n) as loop:
                vector = builder.load(_vector_at(builder, row, builder.mul(loop.index, b_step)), align=4)
                offset = builder.mul(loop.index, a_step)
                for r, total in zip(rows, sums, strict=True):
                    entry = builder.load(builder.gep(factor, [builder.add(builder.mul(r, a_row), offset)]))
                    term = builder.fmul(_everywhere(builder, entry), vector, flags=("contract",))
                    builder.store(builder.fadd(builder.load(total), term, flags=("contract",)), total)
            for target, total in zip(targets, sums, strict=True):
                builder.store(builder.load(total), target, align=4)
            return context.get_dummy_value()

        return signature, generate

    return product


def _everywhere(builder: Any, entry: Any) -> Any:
    """Return a vector of one number."""
    nothing = ir.Constant(_VECTOR, ir.Undefined)
    first = builder.insert_element(nothing, entry, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))


set_tile, add_tile, set_row = _tile_product(adds=False), _tile_product(adds=True), _tile_product(adds=False, n_row=1)


N_TOGETHER = 64
"""Entries of a row that `set_rows` and `add_rows` add up; the sums stay in registers."""

N_CHAIN = 2 if N_ROW == 8 else 1
"""Sums of every entry: eight registers' additions overlap, which are half of the sums with AVX-512."""


def _sum_of_rows(adds: bool) -> Any:
    """Make the function that fills N_TOGETHER entries with a number and a sum of rows, or adds the sum to them."""

    @intrinsic
    def sum_of_rows(_context, first, factors, places, start, end, rows, out, out_at):
        """out[:] = first + Σ factors[p] · rows[places[p], :] over start ≤ p < end, or += the sum, without `first`.

        `factors`, `rows` and `out` are flat float32 arrays, `places` is one of int32. The sum is made before it is
        added: sums over several calls round less so.
        """
        signature = types.void(float32, factors, places, int64, int64, rows, out, int64)

        def generate(context, builder, signature, given):
            first, factors, places, start, end, rows, out, out_at = given
            factors, places, rows, out = (
                _start_of(context, builder, signature.args[i], given[i]) for i in (1, 2, 5, 6)
            )
            parts = [ir.Constant(ir.IntType(64), t) for t in range(0, N_TOGETHER, LANES)]
            nothing = ir.Constant(_VECTOR, [0.0] * LANES)
            begun = [nothing if adds else _everywhere(builder, first), *[nothing] * (N_CHAIN - 1)]
            chains = [[cgutils.alloca_once_value(builder, value) for _ in parts] for value in begun]

            def add(place, sums):
                factor = _everywhere(builder, builder.load(builder.gep(factors, [place])))
                row = builder.zext(builder.load(builder.gep(places, [place])), ir.IntType(64))
                row = builder.gep(rows, [builder.mul(row, ir.Constant(row.type, N_TOGETHER))])
                for part, total in zip(parts, sums, strict=True):
                    entries = builder.load(_vector_at(builder, row, part), align=4)
                    term = builder.fmul(factor, entries, flags=("contract",))
                    builder.store(builder.fadd(builder.load(total), term, flags=("contract",)), total)

            step = ir.Constant(start.type, N_CHAIN)
            whole = builder.sub(end, builder.srem(builder.sub(end, start), step))
            with cgutils.for_range_slice(builder, start, whole, step) as (place, _):
                for chain, sums in enumerate(chains):
                    add(builder.add(place, ir.Constant(place.type, chain)), sums)
            with cgutils.for_range_slice(builder, whole, end, ir.Constant(start.type, 1)) as (place, _):
                add(place, chains[0])
            for part, *sums in zip(parts, *chains, strict=True):
                target = _vector_at(builder, out, builder.add(out_at, part))
                total = builder.load(sums[0])
                for other in sums[1:]:
                    total = builder.fadd(total, builder.load(other))
                if adds:
                    total = builder.fadd(builder.load(target, align=4), total)
                builder.store(total, target, align=4)
            return context.get_dummy_value()

        return signature, generate

    return sum_of_rows


set_rows, add_rows = _sum_of_rows(adds=False), _sum_of_rows(adds=True)


N_LISTED = 8
"""Numbers that `list_nonzeros` looks at together."""

NONZERO_PLACES = np.zeros((256, N_LISTED), dtype=np.uint8)
"""For each pattern of bits the places of those that are set, then zeros."""

for _pattern in range(256):
    _set = [i for i in range(N_LISTED) if _pattern >> i & 1]
    NONZERO_PLACES[_pattern, : len(_set)] = _set


@intrinsic
def list_nonzeros(_context, numbers, at, place, table, values, places, to):
    """List the nonzeros among N_LISTED numbers of a flat float32 array, and return how many they are.

    Args:
        numbers: The array.
        at: Where in it the first of these numbers is.
        place: What that place is called in the list.
        table: NONZERO_PLACES, flat.
        values: A flat float32 array that the nonzeros are written to. It needs room for N_LISTED in any case, as has
            `places`: what stands behind those that were found is anything.
        places: A flat int32 array that their places are written to.
        to: Where in both.
    """
    signature = int64(numbers, int64, int32, table, values, places, int64)

    def generate(context, builder, signature, given):
        numbers, at, place, table, values, places, to = given
        numbers, table, values, places = (
            _start_of(context, builder, signature.args[i], given[i]) for i in (0, 3, 4, 5)
        )
        first, values, places = builder.gep(numbers, [at]), builder.gep(values, [to]), builder.gep(places, [to])

        def of(kind):
            return ir.VectorType(kind, N_LISTED)

        def everywhere(entry):
            nothing = ir.Constant(of(entry.type), ir.Undefined)
            one = builder.insert_element(nothing, entry, ir.Constant(ir.IntType(32), 0))
            return builder.shuffle_vector(one, nothing, ir.Constant(of(ir.IntType(32)), [0] * N_LISTED))

        vector = builder.load(builder.bitcast(first, of(ir.FloatType()).as_pointer()), align=4)
        is_nonzero = builder.fcmp_unordered("!=", vector, ir.Constant(vector.type, [0.0] * N_LISTED))
        pattern = builder.zext(builder.bitcast(is_nonzero, ir.IntType(N_LISTED)), ir.IntType(64))
        row = builder.gep(table, [builder.mul(pattern, ir.Constant(pattern.type, N_LISTED))])
        listed = builder.load(builder.bitcast(row, of(ir.IntType(8)).as_pointer()), align=1)
        named = builder.add(builder.zext(listed, of(ir.IntType(32))), everywhere(place))
        builder.store(named, builder.bitcast(places, named.type.as_pointer()), align=4)
        n_found = builder.ctpop(pattern)

        def copy(start, stop):
            for i in range(start, stop):
                index = ir.Constant(ir.IntType(64), i)
                source = builder.zext(builder.load(builder.gep(row, [index])), ir.IntType(64))
                builder.store(builder.load(builder.gep(first, [source])), builder.gep(values, [index]))

        copy(0, N_LISTED // 2)
        with builder.if_then(builder.icmp_signed(">", n_found, ir.Constant(n_found.type, N_LISTED // 2))):
            copy(N_LISTED // 2, N_LISTED)
        return n_found

    return signature, generate


SIDE = 8
"""Rows and columns of the squares that matrices are turned over in."""


@intrinsic
def turn_square(_context, source, source_at, source_step, target, target_at, target_step):
    """target[c, r] = source[r, c] for a square of SIDE rows, which lie `…_step` apart in two flat float32 arrays.

    Halves of the square trade places, then halves of these.
    """
    signature = types.void(source, int64, int64, target, int64, int64)

    def generate(context, builder, signature, given):
        source, source_at, source_step, target, target_at, target_step = given
        kind = ir.VectorType(ir.FloatType(), SIDE).as_pointer()
        of_source, of_target = (
            [
                builder.bitcast(
                    builder.gep(
                        _start_of(context, builder, array_type, array),
                        [builder.add(at, builder.mul(step, ir.Constant(ir.IntType(64), r)))],
                    ),
                    kind,
                )
                for r in range(SIDE)
            ]
            for array_type, array, at, step in (
                (signature.args[0], source, source_at, source_step),
                (signature.args[3], target, target_at, target_step),
            )
        )
        rows = [builder.load(place, align=4) for place in of_source]
        half = SIDE // 2
        while half >= 1:
            upper = [c if c & half == 0 else SIDE + c - half for c in range(SIDE)]
            lower = [c + half if c & half == 0 else SIDE + c for c in range(SIDE)]
            for r in range(SIDE):
                if r & half == 0:
                    one, other = rows[r], rows[r + half]
                    rows[r], rows[r + half] = (
                        builder.shuffle_vector(one, other, ir.Constant(ir.VectorType(ir.IntType(32), SIDE), lanes))
                        for lanes in (upper, lower)
                    )
            half //= 2
        for row, place in zip(rows, of_target, strict=True):
            builder.store(row, place, align=4)
        return context.get_dummy_value()

    return signature, generate


@numba.njit(cache=True, inline="always")
def turn(source, source_at, source_step, n_row, n_column, target, target_at, target_step):
    """Write a matrix's columns as rows; both lie in flat float32 arrays, rows `…_step` apart."""
    n_square, n_whole = n_row // SIDE * SIDE, n_column // SIDE * SIDE
    for r in range(0, n_square, SIDE):
        for c in range(0, n_whole, SIDE):
            at, to = source_at + r * source_step + c, target_at + c * target_step + r
            turn_square(source, at, source_step, target, to, target_step)
    for r in range(n_row):
        for c in range(n_whole if r < n_square else 0, n_column):
            target[target_at + c * target_step + r] = source[source_at + r * source_step + c]


def _scaled_vector(adds: bool) -> Any:
    """Make the function that copies a vector times a factor, or adds it."""

    @intrinsic
    def scale(_context, source, source_at, factor, target, target_at):
        """target[:] = factor · source[:], or that added, for LANES entries of two flat float32 arrays."""
        signature = types.void(source, int64, float32, target, int64)

        def generate(context, builder, signature, given):
            source, source_at, factor, target, target_at = given
            of_source, of_target = (
                _vector_at(builder, _start_of(context, builder, kind, array), at)
                for array, kind, at in ((source, signature.args[0], source_at), (target, signature.args[3], target_at))
            )
            scaled = builder.fmul(builder.load(of_source, align=4), _everywhere(builder, factor), flags=("contract",))
            if adds:
                scaled = builder.fadd(builder.load(of_target, align=4), scaled, flags=("contract",))
            builder.store(scaled, of_target, align=4)
            return context.get_dummy_value()

        return signature, generate

    return scale


copy_vector, add_vector = _scaled_vector(adds=False), _scaled_vector(adds=True)


@intrinsic
def dot(_context, a, a_at, b, b_at, n):
    """Return Σ a[t] · b[t] over n entries of two flat float32 arrays, n a multiple of LANES."""
    signature = float32(a, int64, b, int64, int64)

    def generate(context, builder, signature, given):
        a, a_at, b, b_at, n = given
        starts = [
            builder.gep(_start_of(context, builder, kind, array), [at])
            for array, kind, at in ((a, signature.args[0], a_at), (b, signature.args[2], b_at))
        ]
        total = cgutils.alloca_once_value(builder, ir.Constant(_VECTOR, [0.0] * LANES))
        with cgutils.for_range_slice(builder, ir.Constant(n.type, 0), n, ir.Constant(n.type, LANES)) as (offset, _):
            one, other = (builder.load(_vector_at(builder, start, offset), align=4) for start in starts)
            term = builder.fmul(one, other, flags=("contract",))
            builder.store(builder.fadd(builder.load(total), term, flags=("contract",)), total)
        return _over_lanes(builder, builder.load(total), lambda one, other: builder.fadd(one, other))

    return signature, generate


def _start_of(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    """Return the pointer to an array's first entry."""
    return context.make_array(kind)(context, builder, array).data


def _vector_at(builder: Any, pointer: Any, offset: Any) -> Any:
    """Return the pointer to a vector that starts so many entries on."""
    return builder.bitcast(builder.gep(pointer, [offset]), _VECTOR.as_pointer())


def _over_lanes(builder: Any, vector: Any, join: Any) -> Any:
    """Return what the lanes of a vector come to when its halves are joined again and again."""
    n = LANES
    while n > 1:
        n //= 2
        low, high = (ir.Constant(ir.VectorType(ir.IntType(32), n), [start + i for i in range(n)]) for start in (0, n))
        vector = join(*(builder.shuffle_vector(vector, vector, lanes) for lanes in (low, high)))
    return builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))


@intrinsic
def largest(_context, numbers, at, n):
    """Return the largest of n numbers of a flat float32 array, n a multiple of LANES; a NaN is passed over."""
    signature = float32(numbers, int64, int64)

    def generate(context, builder, signature, given):
        numbers, at, n = given
        start = builder.gep(_start_of(context, builder, signature.args[0], numbers), [at])
        found = cgutils.alloca_once_value(builder, ir.Constant(_VECTOR, [-math.inf] * LANES))

        def larger(vector, so_far):
            return builder.select(builder.fcmp_ordered(">", vector, so_far), vector, so_far)

        with cgutils.for_range_slice(builder, ir.Constant(n.type, 0), n, ir.Constant(n.type, LANES)) as (offset, _):
            vector = builder.load(_vector_at(builder, start, offset), align=4)
            builder.store(larger(vector, builder.load(found)), found)
        return _over_lanes(builder, builder.load(found), larger)

    return signature, generate


@intrinsic
def above(_context, bits, at, size):
    """Return which of LANES magnitudes, the lower 31 bits of a flat uint32 array, are above one, as a number's bits."""
    signature = int64(bits, int64, int32)

    def generate(context, builder, signature, given):
        bits, at, size = given
        kind = ir.VectorType(ir.IntType(32), LANES)
        start = builder.gep(_start_of(context, builder, signature.args[0], bits), [at])
        vector = builder.load(builder.bitcast(start, kind.as_pointer()), align=4)
        magnitudes = builder.and_(vector, ir.Constant(kind, [0x7FFFFFFF] * LANES))
        nothing = ir.Constant(kind, ir.Undefined)
        first = builder.insert_element(nothing, size, ir.Constant(ir.IntType(32), 0))
        sizes = builder.shuffle_vector(first, nothing, ir.Constant(kind, [0] * LANES))
        marks = builder.icmp_signed(">", magnitudes, sizes)
        return builder.zext(builder.bitcast(marks, ir.IntType(LANES)), ir.IntType(64))

    return signature, generate


@intrinsic
def number_of_ones(_context, x):
    """Count the bits of an int64 that are 1."""
    return int64(int64), lambda context, builder, signature, given: builder.ctpop(given[0])


@intrinsic
def lowest_one(_context, x):
    """Return the place of the lowest bit of an int64 that is 1; there must be one."""
    known = ir.Constant(ir.IntType(1), 1)
    return int64(int64), lambda context, builder, signature, given: builder.cttz(given[0], known)


@intrinsic
def bits_of(_context, x):
    """Read a float32 as an int32."""
    return int32(float32), lambda context, builder, signature, given: builder.bitcast(given[0], ir.IntType(32))


@intrinsic
def value_of(_context, x):
    """Read an int32 as a float32."""
    return float32(int32), lambda context, builder, signature, given: builder.bitcast(given[0], ir.FloatType())


@numba.njit(float32(float32), cache=True, fastmath={"contract"})
def exp2(x):
    """Return two to the power of x, for x up to 127; below −126 zero, and NaN for NaN.

    The whole part goes to the exponent's bits; the rest, at most a half, into the Taylor series of degree 7, whose next
    term is below 6e-9. With the rounding of float32 the relative error is below 2e-7.
    """
    shifted = x + _ROUND
    rest = x - (shifted - _ROUND)
    series = _C7
    series = series * rest + _C6
    series = series * rest + _C5
    series = series * rest + _C4
    series = series * rest + _C3
    series = series * rest + _C2
    series = series * rest + _C1
    series = series * rest + _C0
    whole = value_of((bits_of(shifted) + np.int32(127)) << np.int32(23))
    return np.float32(0) if x < np.float32(-126) else series * whole
