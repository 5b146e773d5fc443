"""The definition of each op in plain torch, which every backend must match."""
