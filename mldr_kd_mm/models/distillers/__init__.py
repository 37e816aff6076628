"""The Distiller, its teacher and the entries of its losses."""
