"""Results to text, Markdown, JSON and Parquet; nothing here measures or decides anything."""
