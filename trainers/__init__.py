"""Algorithms: one file each, readable alone; they are clients of the simulator."""
