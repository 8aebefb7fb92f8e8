"""Who, where, when. Knows specs, keys and stages.base; never the mathematics."""
