"""How are the metrics of a run found, and what do they mean? A list for Prometheus, and the page about all of them."""
