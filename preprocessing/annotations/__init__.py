"""One reader per annotation format, all returning the same typed tables (`tables.Annotations`)."""
