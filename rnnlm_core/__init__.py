"""Recurrent language models: text, vocabulary, corpus, cells, training, evaluation, generation.

This package does the work. It imports neither Prefect nor MLflow and can be used alone.
"""
