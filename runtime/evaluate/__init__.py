"""How well a model ranks: embed the queries and the gallery of a data set, search, and measure."""
