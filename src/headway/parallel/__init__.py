"""Many processes: plans of training on many devices."""
