"""Rewards over HTTP: the server, its replicas on a cluster, the client, and what starts a server for a run."""
