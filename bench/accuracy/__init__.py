"""Accuracy against speed on the embedded model: the pipelines, the questions they get, and the page of the results."""
