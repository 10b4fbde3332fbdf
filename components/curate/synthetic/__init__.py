"""Synthetic documents and task rows: made from templates or by a model, each verified before it is used."""
