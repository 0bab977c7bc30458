"""Metrics, text normalisation and reports."""
