"""ggml's RPC protocol: a server for any pyggml device, and remote devices for any pyggml program.

Owns nothing itself. Doors: `backend.devices_from_spec` (the client), `server.Server` with `transport.Listener`.
"""
