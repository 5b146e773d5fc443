"""What each operation means, in plain torch: the definition every fast version must match."""
