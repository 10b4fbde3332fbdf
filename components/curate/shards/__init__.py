"""The part of curation that works on one shard at a time, in any number of processes, and keeps what it did."""
