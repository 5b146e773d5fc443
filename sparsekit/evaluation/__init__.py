"""Measures what pipelines cost and keep on a whole model, any causal decoder of transformers: answers, text, time."""
