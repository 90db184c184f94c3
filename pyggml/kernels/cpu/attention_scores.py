"""What a score of attention is made into: scale, soft cap, mask with its slope, weight. Knows no loop over keys."""

MASKED_SCORE = -3.4028234663852886e38
"""The score that stands for -inf where a key is seen, so that -inf always means hidden. Where no score of a query is
higher, exp(score - maximum) has no value and the result is NaN, as in the definition."""

MIN_WEIGHT = 2.0**-100
"""The least weight of a key that is seen, so that 0 always means hidden: 0 times a value that is NaN must be NaN. Beside the
1 of the highest score it counts for nothing; times values above 2^-26 it is a normal number, where subnormal ones take a
processor a hundred times as long."""


def alibi_slope():
    """-> slope(head, n_head, max_bias): the factor of a head's mask (ops.cpp: ggml_compute_forward_soft_max_f32)."""
    from pyggml import simd as v

    np = v.np

    @v.device
    def slope(head, n_head, max_bias):
        if max_bias <= np.float32(0.0):
            return np.float32(1.0)
        floor = 1
        while floor * 2 <= n_head:
            floor *= 2
        if head < floor:
            return v.lane(v.exp2(v.splat_f32(-max_bias / np.float32(floor) * np.float32(head + 1))), 0)
        return v.lane(v.exp2(v.splat_f32(-max_bias / np.float32(2 * floor) * np.float32(2 * (head - floor) + 1))), 0)

    return slope


def score_ops():
    """-> (score, add_mask, weight) for 16 keys.

    score(s, scale, softcap): of products of q and k, before the mask; add_mask(score, mask, slope): -inf where that is,
    whatever the score; weight(score, top): exp(score - top), 0 where the score is -inf; top is -inf where all scores are
    that or NaN.
    """
    from pyggml import simd as v

    np = v.np
    minus_inf, masked_score, min_weight = np.float32(-np.inf), np.float32(MASKED_SCORE), np.float32(MIN_WEIGHT)

    @v.device
    def score(s, scale, softcap):
        if softcap == np.float32(0.0):
            s = s * v.splat_f32(scale)
        else:
            s = v.splat_f32(softcap) * v.tanh(s * v.splat_f32(scale / softcap))
        return v.maximum(v.splat_f32(masked_score), s)

    @v.device
    def add_mask(s, mask, slope):
        return v.where_less(v.splat_f32(minus_inf), mask, v.fma(slope, mask, s), mask)

    @v.device
    def weight(s, top):
        base = top
        if top == minus_inf:
            base = np.float32(0.0)
        p = v.exp(s - v.splat_f32(base))
        return v.where_less(v.splat_f32(minus_inf), s, v.maximum(v.splat_f32(min_weight), p), p)

    return score, add_mask, weight
