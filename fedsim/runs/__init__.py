"""Runs in progress, of four kinds: rounds with a server, arrivals, peers in rounds, peers in virtual time."""
