"""Many processes: the group that torchrun starts, and plans of training on many devices."""

from headway.parallel.process import World, processes

__all__ = ["World", "processes"]
