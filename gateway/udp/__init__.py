"""The pipeline of datagrams: diverted, decided, sent onward, answered, and let go when quiet."""
