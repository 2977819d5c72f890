"""`fedhlm reproduce`: a paper's tables and figures from one command."""
