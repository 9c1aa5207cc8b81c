"""Live comments that fly over a video: rooms, moderation, and limits on how fast."""
