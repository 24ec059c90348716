"""Rule sets of any size: readers of the formats that lists come in, and how sets are kept."""
