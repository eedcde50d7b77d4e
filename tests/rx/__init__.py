"""Rx conformance: a topic of the bus composes with reactivex's operators just as a bare Subject does."""
