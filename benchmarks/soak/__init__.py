"""A cluster under load and faults for as long as one likes: ``make soak MINUTES=30``."""
