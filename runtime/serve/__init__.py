"""An index over HTTP: a JSON API and a page, for other programs and for people with a browser."""
