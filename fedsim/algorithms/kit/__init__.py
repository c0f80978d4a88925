"""What methods share: their contracts, local SGD, averaging by gossip, wrappers around a whole method."""
