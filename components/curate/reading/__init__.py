"""Input: which files there are, and the documents in them."""
