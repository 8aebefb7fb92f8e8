"""A set of a run as a data set for others: chosen, described, laid out for the library that loads it. No torch, no ray."""
