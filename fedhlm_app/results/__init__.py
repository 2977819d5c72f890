"""What a run leaves behind: its folder, summary, token log and report."""
