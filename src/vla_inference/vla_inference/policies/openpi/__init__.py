"""Models that a server with openpi's websocket runs, as a family of policies."""
