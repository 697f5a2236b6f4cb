"""TFLite files -> Relax in QDQ form."""
