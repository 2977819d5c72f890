"""Texts for the clients: reading them, dividing them among clients, making prompts of them."""

from fedhlm_app.data.items import BUILTIN, DataError, Items, Split, items_from_rows, load_items

__all__ = ["BUILTIN", "DataError", "Items", "Split", "items_from_rows", "load_items"]
