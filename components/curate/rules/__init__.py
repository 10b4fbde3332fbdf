"""The quality rules of Gopher, C4 and FineWeb: `bounds` names them, `check` applies them."""
