"""Duplicates across all shards: fingerprints of documents, and the sets of equal or nearly equal ones."""
