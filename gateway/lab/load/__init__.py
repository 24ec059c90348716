"""The load that benchmarks use: cheap to make, so that what is between the ends is measured."""
