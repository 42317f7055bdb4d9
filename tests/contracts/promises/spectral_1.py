"""TSV-Merge, isotropic merging and WUDI: the merges of whole matrices in closed form."""

from tests.support.promises import Promise

PROMISES = {
    # Of identical experts no more than the leading min(m, n) // N directions are left.
    "tsv_merge": Promise(),
    # Singular values become their mean, even of a single delta; where deltas cancel, bases are
    # longer than they are.
    **{
        name: Promise(single=False, bounded=4.0, rtol=1e-5)
        for name in ("iso_c", "iso_c_exact", "iso_cts", "iso_cts_exact")
    },
    "wudi": Promise(identical=lambda _: 1.0, bounded=1.5, rtol=1e-5),
    # Of identical experts the sum is left where little of their energy is.
    "swudi": Promise(bounded=1.5, rtol=1e-5),
}
