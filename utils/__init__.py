"""The helper package that all notebooks share.

A module imports only from lower rows, which tests/test_layering.py holds:

exercises    explorer   chat
training     decoding   audit   plotting
transformer  corpora    scores
conventions  attention
masks
"""
