"""The helper package that all notebooks share. A module imports only from lower rows (tests/test_layering.py):

exercises   explorer
training    decoding   audit   plotting
transformer corpora    scores
conventions attention
masks
"""
