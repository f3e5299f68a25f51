"""Energy counters of this machine: what they count, whether they can be read, and joules between two readings."""

from joulec.energy.meters.meter import Counted, Counter, Measurement, Obstacle, counting, find_counters

__all__ = ["Counted", "Counter", "Measurement", "Obstacle", "counting", "find_counters"]
