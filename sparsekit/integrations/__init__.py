"""Integrations with other libraries: one file or folder for each, imported only on request."""
