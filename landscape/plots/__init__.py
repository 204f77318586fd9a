"""Pictures made from saved results: one file per picture, one style for all of them."""
