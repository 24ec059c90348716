"""The owner's rules: matchers, rule sets and the first-match engine. Pure."""
