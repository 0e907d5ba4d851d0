"""Search: from one trained supernet to the sub-networks for any budget."""
