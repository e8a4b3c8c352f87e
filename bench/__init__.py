"""Measurements, and the assets and demo networks they need; run as `python -m bench.NAME` from the repository."""
