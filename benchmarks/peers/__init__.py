"""The same room with other WebSocket libraries: docs/peers.md."""
