"""The policy family of models behind a server with openpi's websocket."""
