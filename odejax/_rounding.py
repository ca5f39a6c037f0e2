"""What float32 may lose, and the margins that cover it: every such constant of the library.

A float32 operation returns the exact result times 1 + d with |d| <= u = 2^-24 = 6.0e-8 (Higham,
*Accuracy and Stability of Numerical Algorithms*, 2002, Section 2.2). A sum whose longest chain has
h additions, of products that are rounded too, is off by at most (h + 1) u times the sum of the
sizes of its terms (Section 4.2). h is log2 n where pairs are added, n - 1 where the n terms are
added one after the other; rounding errors of random sign grow like sqrt(h) u.

The XLA backends do not say in which order they add, so the constants below are stated margins:
larger than the errors that tests find against float64, and each with the longest chain it covers.
Certificates refuse half precision, and run at the highest matrix precision.
"""

# A sum, as a fraction of the sum of the sizes of its terms: 33 u. It covers chains of 32 additions
# in the worst case (sums by pairs of any length, or 32 blocks of sums by pairs), and with errors of
# random sign chains of about 1,000, as in dot products of a few thousand terms in vector lanes.
# `sum_rounding` is for longer ones.
SUM_ROUNDING = 2e-6


def sum_rounding(n: int) -> float:
    """What a sum of n terms may lose in float32, as a fraction of the sum of their sizes.

    A product of a vector with a matrix adds its terms one after the other: n equal terms, whose
    errors have one sign for long, then lose up to n / 5.5 u. n / 4 u is assumed where that is more
    than `SUM_ROUNDING`, for n above 100. The worst case, n u, is not.
    """
    return max(SUM_ROUNDING, (n / 4 + 8) * 2.0**-24)


# The l2 norm of the errors of a whole layer's sums, as a fraction of the l2 norm of the largest
# parts that are added: 8 u. The errors of the entries have random signs, so in l2 they grow like
# sqrt(h): 8 u is that of chains of 64 additions. Used by layers with a proven Lipschitz constant.
LAYER_ROUNDING = 5e-7

# A bound on a norm by Gram iteration: 3,400 u. With k products of n x n matrices a Frobenius norm
# and each product are right to about n u, and the 2^-k-th roots shrink the sum of those to about
# 2 n u: 1e-5 at n = 64, 1e-4 at n = 800. So it covers matrices of up to n = 1,600 rows or columns,
# of the smaller side. The norms of SDP-based layers are raised by it too (the root of a sum, whose
# chain may be as long as 6,600 additions), and the lower bounds on singular values lowered: each is
# the difference of two numbers that are right to this fraction of the larger.
NORM_BOUND_ROUNDING = 2e-4

# A margin z_y - z_j of a certificate, as a fraction of the largest logit (at least 1), once at x
# and once at x': 1,700 u, or 50 layers that each lose SUM_ROUNDING of the logits' size. What is
# lost where large numbers cancel is not in proportion to the logits: certificates count that by
# itself (`float32_error`, `AbstractLipschitzCertificate.rounding`). The norms of weights in a
# certificate's Lipschitz constant are raised by the same fraction: 1,700 u covers a sum of 1,700
# terms, of one sign, in any order.
MARGIN_ROUNDING = 1e-4

# The last operations of a certified radius, two divisions and a product: at most 3 u, and 16 u are
# taken off.
RADIUS_ROUNDING = 1e-6

# Of a pixel, in absolute size: x + v in [0, 1] loses at most u, and the box and the ball are
# checked after a few such sums; 16 u.
PIXEL_ROUNDING = 1e-6
