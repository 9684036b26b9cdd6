"""What the claims about speed, memory and scores are measured with. Notebook 14 imports from here."""
