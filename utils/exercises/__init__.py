"""Exercises that answer: each checks a reader's answer on many cases and names the mistake.

core says how an answer is tried, mistakes makes the wrong answers that many exercises share, and every other file
holds the exercises of the notebook with its name, which imports it as `exercises`.
"""
