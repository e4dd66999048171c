"""The command line: one file per verb, and what an error looks like."""
