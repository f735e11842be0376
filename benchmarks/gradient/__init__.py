"""Parts of ``benchmarks/gradient_quality.py``."""
