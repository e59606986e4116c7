"""Files that a report consists of."""
