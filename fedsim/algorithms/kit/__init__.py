"""What methods share: contracts, plain roles, local SGD, gradients, averaging by gossip, wrappers around a method."""
