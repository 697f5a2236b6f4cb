"""The QDQ form of a model, in Relax: its attributes, how it is read, and how a pass rewrites it."""
