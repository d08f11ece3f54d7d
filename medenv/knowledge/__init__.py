"""What the simulator knows: bases, how they are read, and their compiled tables."""
