"""Many processes: the group that torchrun starts."""

from headway.parallel.process import World, processes

__all__ = ["World", "processes"]
