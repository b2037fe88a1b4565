"""The network server: openpi's websocket, OpenVLA's REST, health and metrics."""
