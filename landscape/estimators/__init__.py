"""Numbers with error bars from products alone: one file per method."""
