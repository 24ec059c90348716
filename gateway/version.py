"""The version, where a checkout that is not installed can read it too."""

VERSION = "0.1.0"
