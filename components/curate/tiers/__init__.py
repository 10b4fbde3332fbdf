"""The quality classifier: a score from 1 to 5 for any text, learnt from a few that are labelled."""
