"""Rewards over HTTP: the server, its replicas on a cluster, and the client."""
