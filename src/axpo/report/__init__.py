"""What a run did, to look at: metrics files, the live view, figures and the HTML report."""
