"""A set of a run as a data set for others: chosen, described, written in a layout that their library loads. No torch, no ray."""
