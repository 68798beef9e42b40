"""The kernels of `near_far`: one forward, and a backward for queries, one for summaries and one for keys.

The prefix is a cluster like the others here, the M-th, whose rows are the first: it is seen, and asks nothing.
"""

import triton
import triton.language as tl

from secvit.ops.triton.rows import cluster_ranks, load_rows, score_weights, softmax_step, store_rows

SIZES = [f"{name}_{axis}" for name in ("order", "q", "k", "v", "out", "grad", "d") for axis in "bhl"]
SIZES += ["heads", "length", "num_clusters", "prefix", "seen_clusters", "tiles", "entries"]  # one binary for all


@triton.jit
def _key_ranks(bounds, sequence, cluster, num_clusters, length, prefix, EQUAL: tl.constexpr):
    """First rank of a cluster that is seen, and the one after its last; the prefix has ranks of its own."""
    start, stop = cluster_ranks(bounds, sequence, tl.minimum(cluster, num_clusters - 1), num_clusters, length, EQUAL)
    is_prefix = cluster == num_clusters
    return tl.where(is_prefix, 0, start), tl.where(is_prefix, prefix, stop)


@triton.jit
def _key_rows(order, first, stop, cluster, num_clusters, prefix, TILE: tl.constexpr):
    """Which slots of a tile hold a key, and its row among all P + L.  (TILE)"""
    # [TILE]
    rank = first + tl.arange(0, TILE)
    real = rank < stop
    token = tl.load(order + rank, mask=real & (cluster < num_clusters), other=0)
    return real, tl.where(cluster < num_clusters, prefix + token, rank)


@triton.jit
def _query_rows(order, first, stop, prefix, TILE: tl.constexpr):
    """Ranks of a tile of queries, which of them are real, and their rows among all P + L.  (TILE)"""
    # [TILE]
    rank = first + tl.arange(0, TILE)
    real = rank < stop
    return rank, real, prefix + tl.load(order + rank, mask=real, other=0)


@triton.jit
def _summaries(
    far_key, far_value, far_bias, own, at, num_clusters,
    D: tl.constexpr, D_PAD: tl.constexpr, TILE: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """A tile of a part's summaries: which exist (TILE), bias (1, TILE), keys and values (TILE, D_PAD).

    own: the first of the part's summaries; at: the first cluster of the tile.
    """
    # [TILE]
    other = at + tl.arange(0, TILE)
    there = other < num_clusters
    shift = tl.load(far_bias + own + other, mask=there, other=float("-inf"))
    # [TILE, D_PAD]
    key = load_rows(far_key + own * D, other, there, D, D, D_PAD, 1, INTERPRETED)
    value = load_rows(far_value + own * D, other, there, D, D, D_PAD, 1, INTERPRETED)
    return there, shift[None, :], key, value


@triton.jit
def _part(program, tiles, bounds, heads, num_clusters, length, EQUAL: tl.constexpr, PARTS: tl.constexpr):
    """Sequence, cluster and part of a program with so many tiles a part; the tile, and the ranks of the part."""
    tile = program % tiles
    part = program // tiles % PARTS
    cluster = program // tiles // PARTS % num_clusters
    sequence = (program // tiles // PARTS // num_clusters).to(tl.int64)
    start, stop = cluster_ranks(bounds, sequence, cluster, num_clusters, length, EQUAL)
    half = (stop - start + PARTS - 1) // PARTS
    start += part * half
    return sequence, cluster, part, tile, start, tl.minimum(start + half, stop)


@triton.jit(do_not_specialize=SIZES)
def forward(
    q, k, v, order, bounds, seen, far_key, far_value, far_bias, out, lse,
    order_b, order_h, q_b, q_h, q_l, k_b, k_h, k_l, v_b, v_h, v_l, out_b, out_h, out_l,
    heads, length, num_clusters, prefix, seen_clusters, tiles, scale,
    D: tl.constexpr, D_PAD: tl.constexpr, TILE: tl.constexpr, EQUAL: tl.constexpr, PARTS: tl.constexpr,
    FAR: tl.constexpr, UNIT: tl.constexpr, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Attention of one tile of queries.  scale, far_bias: log2(e) times the caller's."""
    sequence, cluster, part, tile, start, stop = _part(
        tl.program_id(0), tiles, bounds, heads, num_clusters, length, EQUAL, PARTS
    )
    if start + tile * TILE >= stop:
        return
    b, h = sequence // heads, sequence % heads
    order += b * order_b + h * order_h
    k += (b * k_b + h * k_h) * UNIT
    v += (b * v_b + h * v_h) * UNIT
    # [TILE]
    rank, real, row = _query_rows(order, start + tile * TILE, stop, prefix, TILE)
    # [TILE, D_PAD]
    query = load_rows(q + (b * q_b + h * q_h) * UNIT, row, real, q_l, D, D_PAD, UNIT, INTERPRETED)
    # [TILE]: highest score of each query so far, and its sum of 2**(score - best)
    best = tl.full([TILE], float("-inf"), tl.float32)
    total = tl.zeros([TILE], tl.float32)
    # [TILE, D_PAD]: values, each times 2**(score - best), summed
    mixed = tl.zeros([TILE, D_PAD], tl.float32)
    seen += (sequence * num_clusters + cluster) * seen_clusters
    for i in range(0, seen_clusters):  # its own cluster comes first, so that `best` is finite from there on
        near = tl.load(seen + i)
        first, last = _key_ranks(bounds, sequence, near, num_clusters, length, prefix, EQUAL)
        for at in range(first, last, TILE):
            key_real, key_row = _key_rows(order, at, last, near, num_clusters, prefix, TILE)
            # [TILE, D_PAD]
            key = load_rows(k, key_row, key_real, k_l, D, D_PAD, UNIT, INTERPRETED)
            value = load_rows(v, key_row, key_real, v_l, D, D_PAD, UNIT, INTERPRETED)
            # [TILE, TILE]: queries, keys
            score = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
            score = tl.where(key_real[None, :], score, float("-inf"))
            best, total, mixed = softmax_step(score, value, best, total, mixed, PRECISION)
    if FAR:
        own = ((sequence * num_clusters + cluster) * PARTS + part) * num_clusters
        for at in range(0, num_clusters, TILE):
            # those that are near have a bias of next to minus infinity
            _, shift, key, value = _summaries(
                far_key, far_value, far_bias, own, at, num_clusters, D, D_PAD, TILE, INTERPRETED
            )
            # [TILE, TILE]: queries, clusters
            score = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale + shift
            best, total, mixed = softmax_step(score, value, best, total, mixed, PRECISION)
    store_rows(out + (b * out_b + h * out_h) * UNIT, row, real, out_l, mixed / total[:, None], D, D_PAD, UNIT)
    tl.store(lse + sequence * length + rank, best + tl.log2(total), mask=real)


@triton.jit(do_not_specialize=SIZES)
def backward_queries(
    q, k, v, order, bounds, seen, far_key, far_value, far_bias, out, lse, grad, dq,
    order_b, order_h, q_b, q_h, q_l, k_b, k_h, k_l, v_b, v_h, v_l, out_b, out_h, out_l, grad_b, grad_h, grad_l,
    d_b, d_h, d_l, heads, length, num_clusters, prefix, seen_clusters, tiles, scale, dscale,
    D: tl.constexpr, D_PAD: tl.constexpr, TILE: tl.constexpr, EQUAL: tl.constexpr, PARTS: tl.constexpr,
    FAR: tl.constexpr, UNIT: tl.constexpr, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Gradient of one tile of queries, over all that they see."""
    sequence, cluster, part, tile, start, stop = _part(
        tl.program_id(0), tiles, bounds, heads, num_clusters, length, EQUAL, PARTS
    )
    if start + tile * TILE >= stop:
        return
    b, h = sequence // heads, sequence % heads
    order += b * order_b + h * order_h
    k += (b * k_b + h * k_h) * UNIT
    v += (b * v_b + h * v_h) * UNIT
    # [TILE]
    rank, real, row = _query_rows(order, start + tile * TILE, stop, prefix, TILE)
    # [TILE, D_PAD]
    query = load_rows(q + (b * q_b + h * q_h) * UNIT, row, real, q_l, D, D_PAD, UNIT, INTERPRETED)
    its_out = load_rows(out + (b * out_b + h * out_h) * UNIT, row, real, out_l, D, D_PAD, UNIT, INTERPRETED)
    its_grad = load_rows(grad + (b * grad_b + h * grad_h) * UNIT, row, real, grad_l, D, D_PAD, UNIT, INTERPRETED)
    # [TILE]: infinite where no query is, so that its weights are zero
    its_lse = tl.load(lse + sequence * length + rank, mask=real, other=float("inf"))
    # [TILE, D_PAD]
    dquery = tl.zeros([TILE, D_PAD], tl.float32)
    seen += (sequence * num_clusters + cluster) * seen_clusters
    for i in range(0, seen_clusters):
        near = tl.load(seen + i)
        first, last = _key_ranks(bounds, sequence, near, num_clusters, length, prefix, EQUAL)
        for at in range(first, last, TILE):
            there, key_row = _key_rows(order, at, last, near, num_clusters, prefix, TILE)
            # [TILE, D_PAD]
            key = load_rows(k, key_row, there, k_l, D, D_PAD, UNIT, INTERPRETED)
            value = load_rows(v, key_row, there, v_l, D, D_PAD, UNIT, INTERPRETED)
            # [TILE, TILE]: queries, keys
            _, dscore = score_weights(query, key, value, its_grad, its_out, its_lse, there, scale, 0.0, PRECISION)
            dquery += tl.dot(dscore.to(key.dtype), key, input_precision=PRECISION)
    if FAR:
        own = ((sequence * num_clusters + cluster) * PARTS + part) * num_clusters
        for at in range(0, num_clusters, TILE):
            there, shift, key, value = _summaries(
                far_key, far_value, far_bias, own, at, num_clusters, D, D_PAD, TILE, INTERPRETED
            )
            # [TILE, TILE]: queries, clusters
            _, dscore = score_weights(query, key, value, its_grad, its_out, its_lse, there, scale, shift, PRECISION)
            dquery += tl.dot(dscore.to(key.dtype), key, input_precision=PRECISION)
    store_rows(dq + (b * d_b + h * d_h) * UNIT, row, real, d_l, dquery * dscale, D, D_PAD, UNIT)


@triton.jit(do_not_specialize=SIZES)
def backward_summaries(
    q, order, bounds, far_key, far_value, far_bias, out, lse, grad, dkey, dvalue, dbias,
    order_b, order_h, q_b, q_h, q_l, out_b, out_h, out_l, grad_b, grad_h, grad_l,
    heads, length, num_clusters, prefix, tiles, scale, dscale,
    D: tl.constexpr, D_PAD: tl.constexpr, TILE: tl.constexpr, EQUAL: tl.constexpr, PARTS: tl.constexpr,
    UNIT: tl.constexpr, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Gradients of one tile of the summaries that a part of a cluster has: over all queries of the part."""
    sequence, cluster, part, tile, start, stop = _part(
        tl.program_id(0), tiles, bounds, heads, num_clusters, length, EQUAL, PARTS
    )
    b, h = sequence // heads, sequence % heads
    order += b * order_b + h * order_h
    q += (b * q_b + h * q_h) * UNIT
    out += (b * out_b + h * out_h) * UNIT
    grad += (b * grad_b + h * grad_h) * UNIT
    own = ((sequence * num_clusters + cluster) * PARTS + part) * num_clusters
    # [TILE]
    other = tile * TILE + tl.arange(0, TILE)
    there, shift, key, value = _summaries(
        far_key, far_value, far_bias, own, tile * TILE, num_clusters, D, D_PAD, TILE, INTERPRETED
    )
    its_dkey = tl.zeros([TILE, D_PAD], tl.float32)
    its_dvalue = tl.zeros([TILE, D_PAD], tl.float32)
    # [TILE]
    its_dbias = tl.zeros([TILE], tl.float32)
    for first in range(start, stop, TILE):
        # [TILE]
        rank, real, row = _query_rows(order, first, stop, prefix, TILE)
        # [TILE, D_PAD]
        query = load_rows(q, row, real, q_l, D, D_PAD, UNIT, INTERPRETED)
        its_out = load_rows(out, row, real, out_l, D, D_PAD, UNIT, INTERPRETED)
        its_grad = load_rows(grad, row, real, grad_l, D, D_PAD, UNIT, INTERPRETED)
        # [TILE]
        its_lse = tl.load(lse + sequence * length + rank, mask=real, other=float("inf"))
        # [TILE, TILE]: queries, clusters
        weight, dscore = score_weights(query, key, value, its_grad, its_out, its_lse, there, scale, shift, PRECISION)
        its_dvalue += tl.dot(tl.trans(weight.to(its_grad.dtype)), its_grad, input_precision=PRECISION)
        its_dkey += tl.dot(tl.trans(dscore.to(query.dtype)), query, input_precision=PRECISION)
        its_dbias += tl.sum(dscore, axis=0)
    store_rows(dkey + own * D, other, there, D, its_dkey * dscale, D, D_PAD, 1)
    store_rows(dvalue + own * D, other, there, D, its_dvalue, D, D_PAD, 1)
    tl.store(dbias + own + other, its_dbias, mask=there)


@triton.jit(do_not_specialize=SIZES)
def backward_keys(
    q, k, v, order, bounds, askers, borders, out, lse, grad, dk, dv,
    order_b, order_h, q_b, q_h, q_l, k_b, k_h, k_l, v_b, v_h, v_l, out_b, out_h, out_l, grad_b, grad_h, grad_l,
    d_b, d_h, d_l, heads, length, num_clusters, prefix, entries, tiles, scale, dscale,
    D: tl.constexpr, D_PAD: tl.constexpr, TILE: tl.constexpr, EQUAL: tl.constexpr,
    UNIT: tl.constexpr, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Gradients of one tile of a cluster's keys and values, or of the prefix's: over the queries that see them.

    askers: of each sequence so many entries, the clusters that see cluster 0, then those that see cluster 1, ..., and
        the prefix last; borders: where each begins, and the end.
    """
    program = tl.program_id(0)
    tile = program % tiles
    seen = program // tiles % (num_clusters + 1)
    sequence = (program // tiles // (num_clusters + 1)).to(tl.int64)
    start, stop = _key_ranks(bounds, sequence, seen, num_clusters, length, prefix, EQUAL)
    if start + tile * TILE >= stop:
        return
    b, h = sequence // heads, sequence % heads
    order += b * order_b + h * order_h
    q += (b * q_b + h * q_h) * UNIT
    out += (b * out_b + h * out_h) * UNIT
    grad += (b * grad_b + h * grad_h) * UNIT
    # [TILE]
    there, key_row = _key_rows(order, start + tile * TILE, stop, seen, num_clusters, prefix, TILE)
    # [TILE, D_PAD]
    key = load_rows(k + (b * k_b + h * k_h) * UNIT, key_row, there, k_l, D, D_PAD, UNIT, INTERPRETED)
    value = load_rows(v + (b * v_b + h * v_h) * UNIT, key_row, there, v_l, D, D_PAD, UNIT, INTERPRETED)
    dkey = tl.zeros([TILE, D_PAD], tl.float32)
    dvalue = tl.zeros([TILE, D_PAD], tl.float32)
    borders += sequence * (num_clusters + 2) + seen
    for entry in range(tl.load(borders), tl.load(borders + 1)):
        cluster = tl.load(askers + sequence * entries + entry)
        first_rank, last_rank = cluster_ranks(bounds, sequence, cluster, num_clusters, length, EQUAL)
        for first in range(first_rank, last_rank, TILE):
            # [TILE]
            rank, real, row = _query_rows(order, first, last_rank, prefix, TILE)
            # [TILE, D_PAD]
            query = load_rows(q, row, real, q_l, D, D_PAD, UNIT, INTERPRETED)
            its_out = load_rows(out, row, real, out_l, D, D_PAD, UNIT, INTERPRETED)
            its_grad = load_rows(grad, row, real, grad_l, D, D_PAD, UNIT, INTERPRETED)
            # [TILE]
            its_lse = tl.load(lse + sequence * length + rank, mask=real, other=float("inf"))
            # [TILE, TILE]: queries, keys
            weight, dscore = score_weights(query, key, value, its_grad, its_out, its_lse, there, scale, 0.0, PRECISION)
            dvalue += tl.dot(tl.trans(weight.to(its_grad.dtype)), its_grad, input_precision=PRECISION)
            dkey += tl.dot(tl.trans(dscore.to(query.dtype)), query, input_precision=PRECISION)
    place = (b * d_b + h * d_h) * UNIT
    store_rows(dk + place, key_row, there, d_l, dkey * dscale, D, D_PAD, UNIT)
    store_rows(dv + place, key_row, there, d_l, dvalue, D, D_PAD, UNIT)
