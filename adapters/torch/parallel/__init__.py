"""Several processes that train one model together: ranks, DistributedDataParallel, fully_shard."""
