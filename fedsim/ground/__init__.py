"""What everything stands on: flat vectors, trees, random streams, files, the console. It knows no part of a run."""
