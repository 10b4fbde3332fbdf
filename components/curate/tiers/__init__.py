"""Quality tiers: a small classifier that learns from example texts how good a document is, from 1 to 5.

The manner is that of FineWeb-Edu (arXiv 2406.17557, section 4: a regression to labelled examples' scores) and of Nemotron-CC
(arXiv 2412.02595: five quality buckets); in place of a model's embeddings the features are word counts and statistics of the text.
"""
