"""Datasets: label rules, importers, packs and the crops that training reads."""
