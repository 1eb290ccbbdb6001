"""Launchers: the only place with Ray."""
