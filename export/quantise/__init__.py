"""Half precision and eight-bit numbers: graph, calibration, and the search for settings."""
