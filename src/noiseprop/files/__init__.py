"""Reading and writing files: atomic writes, checksums, and bounded reading of untrusted files."""
