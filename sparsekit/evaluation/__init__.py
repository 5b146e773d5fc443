"""What a pipeline costs and keeps on a whole model: answers, text, time; any causal decoder of transformers."""
