"""The embedded-atom potential."""
