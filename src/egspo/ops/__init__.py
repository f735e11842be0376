"""The functional core: tensors in, tensors out. Imports torch and nothing else of the project but types."""
