"""The loops of `kernels.cuda`, in Triton; imported on a GPU, or where its interpreter is switched on."""

# Triton's functions are no Python functions to a type checker, and it may be missing.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportMissingImports=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportIndexIssue=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl


@triton.jit
def _magnitude(x, IS_HALF: tl.constexpr):
    """Return the bits of |x| as an integer, ordered like the magnitude, NaN above infinity."""
    if IS_HALF:  # noqa: SIM108 (a choice at compile time)
        bits = x.to(tl.int16, bitcast=True).to(tl.int32) & 0x7FFF
    else:
        bits = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return bits


@triton.jit
def _threshold(magnitude, n_keep, N_BIT: tl.constexpr):
    """Return the largest t such that at least `n_keep` magnitudes are at or above t, bit by bit; along axis 0."""
    found = tl.sum(magnitude * 0, 0)
    for i in tl.static_range(N_BIT):
        trial = found | (1 << (N_BIT - 1 - i))
        n_above = tl.sum((magnitude >= trial).to(tl.int32), 0)
        found = tl.where(n_above >= n_keep, trial, found)
    return found


@triton.jit
def abs_topk_rows(x_ptr, out_ptr, keep_ptr, n_keep, width, BLOCK: tl.constexpr, IS_HALF: tl.constexpr):
    """Keep the `n_keep` largest magnitudes of one row, ties to the lower index."""
    row = tl.program_id(0).to(tl.int64) * width
    column = tl.arange(0, BLOCK)
    is_inside = column < width
    x = tl.load(x_ptr + row + column, mask=is_inside, other=0.0)
    magnitude = tl.where(is_inside, _magnitude(x, IS_HALF), -1)
    threshold = _threshold(magnitude, n_keep, 15 if IS_HALF else 31)
    is_tie = (magnitude == threshold).to(tl.int32)
    n_larger = tl.sum((magnitude > threshold).to(tl.int32), 0)
    keep = (magnitude > threshold) | ((is_tie == 1) & (tl.cumsum(is_tie, 0) <= n_keep - n_larger))
    tl.store(out_ptr + row + column, tl.where(keep, x, 0.0), mask=is_inside)
    tl.store(keep_ptr + row + column, keep.to(tl.int8), mask=is_inside)


@triton.jit
def packed_product(
    x_ptr,
    value_ptr,
    column_ptr,
    offset_ptr,
    bias_ptr,
    out_ptr,
    n_vector,
    n_source,
    n_target,
    HAS_BIAS: tl.constexpr,
    N_VECTOR: tl.constexpr,
    N_ENTRY: tl.constexpr,
):
    """Multiply a few vectors by one row of a packed weight, `N_ENTRY` of its nonzeros at a time."""
    target = tl.program_id(0)
    vector = (tl.program_id(1) * N_VECTOR + tl.arange(0, N_VECTOR)).to(tl.int64)
    is_vector = vector < n_vector
    start, end = tl.load(offset_ptr + target), tl.load(offset_ptr + target + 1)
    sums = tl.zeros((N_VECTOR, N_ENTRY), dtype=tl.float32)
    for first in range(start, end, N_ENTRY):
        entry = first + tl.arange(0, N_ENTRY)
        is_entry = entry < end
        value = tl.load(value_ptr + entry, mask=is_entry, other=0.0)
        column = tl.load(column_ptr + entry, mask=is_entry, other=0)
        is_asked = is_vector[:, None] & is_entry[None, :]
        x = tl.load(x_ptr + vector[:, None] * n_source + column[None, :], mask=is_asked, other=0.0)
        sums += x * value[None, :]
    total = tl.sum(sums, 1)
    if HAS_BIAS:
        total += tl.load(bias_ptr + target)
    tl.store(out_ptr + vector * n_target + target, total, mask=is_vector)


# A table row describes one weight: address, entries, columns, axis of its neurons, how many of each are protected,
# how many free entries are kept, and where its neurons stand in the lists `least` and `last`.


@triton.jit
def protect(table, least_ptr, last_ptr, N_LONG: tl.constexpr, N_SIDE: tl.constexpr):
    """Find, for a few neurons of one weight, the least protected magnitude and the last protected place at it."""
    entry = table + tl.program_id(1) * 8
    weight = tl.load(entry).to(tl.pointer_type(tl.float32))
    n_column, axis = tl.load(entry + 2), tl.load(entry + 3)
    n_alive, start = tl.load(entry + 4), tl.load(entry + 6)
    n_row = tl.load(entry + 1) // n_column
    n_neuron = tl.where(axis == 0, n_row, n_column)
    n_entry = tl.where(n_alive > 0, tl.where(axis == 0, n_column, n_row), 0)
    n_neuron = tl.where(n_alive > 0, n_neuron, 0)
    neuron = tl.program_id(0) * N_SIDE + tl.arange(0, N_SIDE)[None, :]
    along = tl.arange(0, N_LONG)[:, None]
    place = tl.where(axis == 0, neuron * n_column + along, along * n_column + neuron)
    is_inside = (neuron < n_neuron) & (along < n_entry)
    magnitude = tl.where(is_inside, _magnitude(tl.load(weight + place, mask=is_inside, other=0.0), False), -1)
    least = _threshold(magnitude, n_alive, 31)  # (N_SIDE,)
    is_tie = (magnitude == least[None, :]).to(tl.int32)
    n_larger = tl.sum((magnitude > least[None, :]).to(tl.int32), 0)
    is_taken = (is_tie == 1) & (tl.cumsum(is_tie, 0) <= (n_alive - n_larger)[None, :])
    last = tl.max(tl.where(is_taken, along, -1), 0)
    flat = tl.program_id(0) * N_SIDE + tl.arange(0, N_SIDE)
    tl.store(least_ptr + start + flat, least, mask=flat < n_neuron)
    tl.store(last_ptr + start + flat, last.to(tl.int32), mask=flat < n_neuron)


@triton.jit
def _is_protected(entry, place, magnitude, least_ptr, last_ptr):
    n_column, axis = tl.load(entry + 2), tl.load(entry + 3)
    n_alive, start = tl.load(entry + 4), tl.load(entry + 6)
    row, column = place // n_column, place % n_column
    neuron, along = tl.where(axis == 0, row, column), tl.where(axis == 0, column, row)
    is_asked = place < tl.where(n_alive > 0, tl.load(entry + 1), 0)
    least = tl.load(least_ptr + start + neuron, mask=is_asked, other=0)
    last = tl.load(last_ptr + start + neuron, mask=is_asked, other=0)
    return is_asked & ((magnitude > least) | ((magnitude == least) & (along <= last)))


@triton.jit
def count(
    table, state_ptr, counts_ptr, least_ptr, last_ptr, SHIFT: tl.constexpr, N_BIN: tl.constexpr, BLOCK: tl.constexpr
):
    """Add up how many free entries of one weight, among those at the prefix found so far, fall in each bin."""
    which = tl.program_id(1)
    entry = table + which * 8
    weight, size = tl.load(entry).to(tl.pointer_type(tl.float32)), tl.load(entry + 1)
    prefix = tl.load(state_ptr + which * 2)
    counts = tl.zeros((N_BIN,), dtype=tl.int32)
    for first in range(tl.program_id(0) * BLOCK, size, tl.num_programs(0) * BLOCK):
        place = first + tl.arange(0, BLOCK).to(tl.int64)
        is_inside = place < size
        magnitude = _magnitude(tl.load(weight + place, mask=is_inside, other=0.0), False)
        is_counted = is_inside & (((magnitude >> SHIFT) // N_BIN) == prefix)
        is_counted = is_counted & (_is_protected(entry, place, magnitude, least_ptr, last_ptr) == 0)
        bins = tl.where(is_counted, (magnitude >> SHIFT) & (N_BIN - 1), 0)
        counts += tl.histogram(bins, N_BIN)
        n_other = BLOCK - tl.sum(is_counted.to(tl.int32), 0)  # they were put into the first bin
        counts -= tl.where(tl.arange(0, N_BIN) == 0, n_other, 0)
    tl.atomic_add(counts_ptr + which * 2048 + tl.arange(0, N_BIN), counts, mask=counts != 0)


@triton.jit
def pick(state_ptr, counts_ptr, N_BIN: tl.constexpr):
    """Choose the bin that holds the last entry to keep; what is above it is kept and needs no more search."""
    which = tl.program_id(0)
    prefix, left = tl.load(state_ptr + which * 2), tl.load(state_ptr + which * 2 + 1)
    at = tl.arange(0, N_BIN)
    counts = tl.load(counts_ptr + which * 2048 + at)
    at_or_above = tl.sum(counts, 0) - tl.cumsum(counts, 0) + counts
    chosen = tl.maximum(tl.sum((at_or_above >= left).to(tl.int32), 0) - 1, 0)
    above = tl.sum(tl.where(at == chosen, at_or_above - counts, 0), 0)
    tl.store(state_ptr + which * 2, prefix * N_BIN + chosen)
    tl.store(state_ptr + which * 2 + 1, left - above)
    tl.store(counts_ptr + which * 2048 + at, tl.zeros((N_BIN,), dtype=tl.int32))


@triton.jit
def apply(table, state_ptr, n_tie_ptr, least_ptr, last_ptr, BLOCK: tl.constexpr):
    """Zero what is below the threshold and not protected, and count the ties at it."""
    which = tl.program_id(1)
    entry = table + which * 8
    weight, size = tl.load(entry).to(tl.pointer_type(tl.float32)), tl.load(entry + 1)
    n_free = tl.load(entry + 5)
    threshold = tl.where(n_free > 0, tl.load(state_ptr + which * 2).to(tl.int64), 1 << 31)
    for first in range(tl.program_id(0) * BLOCK, size, tl.num_programs(0) * BLOCK):
        place = first + tl.arange(0, BLOCK).to(tl.int64)
        is_inside = place < size
        x = tl.load(weight + place, mask=is_inside, other=0.0)
        magnitude = _magnitude(x, False)
        is_protected = _is_protected(entry, place, magnitude, least_ptr, last_ptr)
        keep = is_protected | (magnitude >= threshold)
        tl.store(weight + place, tl.where(keep, x, 0.0), mask=is_inside)
        is_tie = is_inside & (magnitude == threshold) & (is_protected == 0)
        tl.atomic_add(n_tie_ptr + which, tl.sum(is_tie.to(tl.int32), 0))


@triton.jit
def drop_ties(table, state_ptr, n_tie_ptr, least_ptr, last_ptr, BLOCK: tl.constexpr):
    """Zero the ties at the threshold that are too many, the last ones; almost always there are none."""
    which = tl.program_id(0)
    entry = table + which * 8
    weight, size = tl.load(entry).to(tl.pointer_type(tl.float32)), tl.load(entry + 1)
    threshold, left = tl.load(state_ptr + which * 2), tl.load(state_ptr + which * 2 + 1)
    if tl.load(n_tie_ptr + which) > left:
        n_before = tl.zeros((), dtype=tl.int32)
        for first in range(0, size, BLOCK):
            place = first + tl.arange(0, BLOCK).to(tl.int64)
            is_inside = place < size
            magnitude = _magnitude(tl.load(weight + place, mask=is_inside, other=0.0), False)
            is_protected = _is_protected(entry, place, magnitude, least_ptr, last_ptr)
            is_tie = (is_inside & (magnitude == threshold) & (is_protected == 0)).to(tl.int32)
            is_dropped = (is_tie == 1) & (n_before + tl.cumsum(is_tie, 0) > left)
            tl.store(weight + place, tl.zeros((BLOCK,), dtype=tl.float32), mask=is_dropped)
            n_before += tl.sum(is_tie, 0)
