"""Plain torch, no compiler: fast on a CPU, runs on any device."""
