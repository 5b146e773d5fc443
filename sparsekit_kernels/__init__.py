"""How fast: one package a backend, with the module and function names of sparsekit.ops."""
