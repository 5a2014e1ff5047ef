"""The commands about servers of reward models: `rrm-lm serve` and `rrm-lm check-server`."""
