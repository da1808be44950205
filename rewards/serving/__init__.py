"""Rewards over HTTP: the server, its replicas on a cluster, its client, and what starts one for a run."""
