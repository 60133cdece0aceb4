"""Metrics of ECG models: plain numpy functions, and `evaluate.Metric` wrappers of the same (files `ecg_*.py`)."""
