"""The ground floor: files, JSON lines, revisions and ranks, for every other folder; it imports the standard library alone."""
