"""Sans-I/O codecs: bytes in, values out; no socket, clock or loop is imported here."""
