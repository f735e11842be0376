"""The rules by which d1 (arXiv 2504.12216) grades generations, faults included, so that its tables can be
compared.

Source: ``eval/parse_and_get_acc.py`` and what it calls, in github.com/dllm-reasoning/d1. The implementation
is our own: of the same verdict on any text, in time linear in it, and without running text as code. Nobody
cuts a text at its end token here.
"""
