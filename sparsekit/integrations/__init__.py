"""Where sparsekit meets other libraries: one file a library, imported when asked for."""
