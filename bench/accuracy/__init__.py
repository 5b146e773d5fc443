"""Accuracy against speed on the embedded model: which pipelines are asked, how, and the page that comes of it."""
