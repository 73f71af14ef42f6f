"""Readers of the datasets' own layouts, one module a dataset."""
