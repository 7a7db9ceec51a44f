"""What the pages of the server, of reports and of answers have in common."""
