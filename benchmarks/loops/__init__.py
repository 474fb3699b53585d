"""Programs that learn a topic without this project, as users would write them."""
