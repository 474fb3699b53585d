"""State to bytes and back, the objects that hold it, and how long they are kept."""
