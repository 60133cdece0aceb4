"""The models, what prepares their inputs, and how recordings are read; each file also runs from a Hub repo."""
