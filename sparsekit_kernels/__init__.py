"""Fast versions of the ops: one package per backend, with the module and function names of sparsekit.ops."""
