"""What is known to be wrong with the BUV data set, by the names of its videos."""

# Errata published by its authors.
BUV_DUPLICATES = {"benign/x66ef02e7f1b9a0ef": "malignant/x3b88488853e8b7d1"}
BUV_MALIGNANT = frozenset(
    {
        "benign/x63c9ba1377f35bf6",
        "benign/x5a1c46ec6377e946",
        "malignant/2390fbea047347b",
        "malignant/7a39ab5d4970bf89",
    }
)
# Not an erratum of the authors and left in place: 106 of 110 frames are shared across the official split.
BUV_LEAK = ("benign/x1282311c38f808f", "malignant/x9c1c965d274c457")
