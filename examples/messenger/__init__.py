"""A messenger: people, rooms with an owner, and messages that wait for those who are away."""
