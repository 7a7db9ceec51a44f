"""Near-duplicates for the page: their computation, its groups, and the routes."""
