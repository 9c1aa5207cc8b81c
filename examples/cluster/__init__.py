"""Three nodes of the chat on one machine, with a real queue and a real registry: ``make cluster``."""
