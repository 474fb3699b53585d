"""The objects that hold states and releases, and how long they are kept."""
