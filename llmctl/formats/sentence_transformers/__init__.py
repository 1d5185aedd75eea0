"""Folders of embedders, as sentence-transformers has them."""
