"""Which configurations are tried, with how many seeds."""
