"""Synthetic documents and task rows: made from templates or by a model, each verified before it is used."""

SOURCE = "synthetic/verified"  # no directory's name: what a user keeps in one called synthetic is another source
