"""What the claims about speed and memory are measured with. Notebook 14 imports from here."""
